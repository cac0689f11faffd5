"""A directory of models that may be loaded by name, laid out as `NAME.onnx` or as `NAME/VERSION/model.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from defer.batching import make_batching
from defer.documents.plan import PlanBatching
from defer.errors import FileMissing, UnknownModel, UsageError, WrongInput


class Repository:
    """Models by name.

    Args:
        directory: Where they lie; None for no directory, which holds nothing.

    Raises:
        FileMissing: There is no such directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        if directory is not None and not directory.is_dir():
            raise FileMissing("no such directory", where=str(directory), hint="check --repository")
        self._directory = directory

    def models(self) -> dict[str, Path]:
        """The ONNX files by the name of their model, as they are now; of several versions the highest."""
        if self._directory is None:
            return {}
        found = {path.stem: path for path in sorted(self._directory.glob("*.onnx"))}
        for folder in sorted(path for path in self._directory.iterdir() if path.is_dir()):
            versions = [path for path in folder.glob("*/model.onnx") if path.parent.name.isdigit()]
            if versions:
                found[folder.name] = max(versions, key=lambda path: int(path.parent.name))
        return found

    def find(self, name: str) -> Path:
        """The file of a model.

        Raises:
            UnknownModel: There is none of this name.
        """
        found = self.models()
        if name not in found:
            known = ", ".join(sorted(found)) or "nothing"
            where = (
                f"the repository holds {known}" if self._directory is not None else "there is no repository"
            )
            raise UnknownModel(
                f"no model {name!r:.80} can be loaded: {where}",
                hint="`--repository DIR` names a directory of ONNX files",
            )
        return found[name]


class _DynamicBatching(msgspec.Struct, forbid_unknown_fields=True):
    preferred_batch_size: tuple[int, ...]
    max_queue_delay_microseconds: int = 0


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    dynamic_batching: _DynamicBatching


_CONFIGS = msgspec.json.Decoder(_Config)


def batching_of(parameters: Mapping[str, object]) -> PlanBatching | None:
    """The dynamic batching that a load request's `config` asks for; None where it says nothing.

    Raises:
        WrongInput: It brings files, or a configuration of something else.
    """
    for key in parameters:
        if key.startswith("file:"):
            raise WrongInput(
                f"parameter {key!r} of a load request is not supported",
                hint="put the model into the repository's directory, or send it with `defer deploy`",
            )
    config = parameters.get("config")
    if config is None:
        return None
    try:
        asked = _CONFIGS.decode(str(config)).dynamic_batching
        return make_batching(asked.preferred_batch_size, asked.max_queue_delay_microseconds / 1e6)
    except (msgspec.MsgspecError, UsageError) as error:
        raise WrongInput(
            f"the `config` of the load request: {error}",
            hint='as {"dynamic_batching": {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 2000}}',
        ) from None
