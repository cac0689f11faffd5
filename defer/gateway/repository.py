"""A directory of models that may be loaded by name, laid out as `NAME.onnx` or as `NAME/VERSION/model.onnx`."""

from __future__ import annotations

from pathlib import Path

from defer.errors import FileMissing, UnknownModel, WrongInput


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
                f"no model {name!r} can be loaded: {where}",
                hint="`--repository DIR` names a directory of ONNX files",
            )
        return found[name]


def check_parameters(parameters: object) -> None:
    """Refuse what a load request may carry and this server does not do.

    Raises:
        WrongInput: It brings a configuration or files of its own.
    """
    keys = [str(key) for key in parameters] if isinstance(parameters, dict) else []
    for key in keys:
        if key == "config" or key.startswith("file:"):
            raise WrongInput(
                f"parameter {key!r} of a load request is not supported",
                hint="put the model into the repository's directory, or send it with `defer deploy`",
            )
