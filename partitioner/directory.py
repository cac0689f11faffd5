"""Partitions as plain files with a manifest, for whoever runs them with nothing but an ONNX engine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from partitioner.chain import BlockChain, TensorSpec
from partitioner.errors import OutputExists
from partitioner.splitting import Partition
from partitioner.writing import translated_errors, write_model

MANIFEST: Final = "manifest.json"
EMBED_UP_TO: Final = 1 << 30
"""Bytes of weights that a partition's own file may hold; more go to a ``.data`` file beside it."""


def write_directory(
    partitions: Sequence[Partition],
    chain: BlockChain,
    directory: str | Path,
    *,
    precision: str = "fp32",
    embed_up_to: int = EMBED_UP_TO,
) -> dict[str, Any]:
    """Write ``partition_00.onnx`` … and ``manifest.json`` into a directory of their own.

    The directory appears complete or not at all. An earlier output of this function is replaced; anything
    else in the way is refused.

    Args:
        partitions: from :func:`split`, all of them in order.
        chain: from :func:`analyze` of the same model; names it, its inputs and its outputs.
        directory: made, with its parents, if missing.
        precision: what they were rewritten in, for the manifest.
        embed_up_to: bytes of weights up to which a partition is a single file.

    Returns:
        What ``manifest.json`` holds: ``model``, ``digest``, ``inputs``, ``outputs`` and ``partitions``, each of
        them with ``file``, ``sha256``, ``precision``, ``inputs``, ``outputs`` (and ``data``, a list of file and
        sha256, where the weights lie beside), each tensor with ``name``, ``dtype`` and ``shape``.

    Raises:
        OutputExists: if the directory holds other files.
        WriteFailed: if the system refuses; what was there before is still there.
        MissingWeights: if the model's own file is gone.
    """
    target = Path(directory)
    with translated_errors(target):
        _check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
        try:
            manifest = _write(partitions, chain, staging, precision, embed_up_to)
            staging.chmod(0o755)
            _swap(staging, target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return manifest


def _write(
    partitions: Sequence[Partition], chain: BlockChain, folder: Path, precision: str, embed_up_to: int
) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for partition in partitions:
        name = f"partition_{partition.index:02d}.onnx"
        digest, data_digest = write_model(partition.model, folder / name, embed_up_to=embed_up_to)
        entry: dict[str, Any] = {"file": name, "sha256": digest, "precision": precision}
        if data_digest is not None:
            entry["data"] = [{"file": f"{name}.data", "sha256": data_digest}]
        entry["inputs"] = [_tensor(tensor) for tensor in partition.inputs]
        entry["outputs"] = [_tensor(tensor) for tensor in partition.outputs]
        entries.append(entry)
    # A frozen split declares its own shapes; the chain's are those of the model.
    frozen = {spec.name: spec for p in reversed(partitions) for spec in (*p.inputs, *p.outputs)}
    manifest = {
        "model": chain.model,
        "digest": chain.digest,
        "inputs": [_tensor(frozen.get(spec.name, spec)) for spec in chain.inputs],
        "outputs": [_tensor(frozen.get(spec.name, spec)) for spec in chain.outputs],
        "partitions": entries,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputExists(f"{target} is a file, not a directory", hint="choose another directory")
    present = {entry.name for entry in target.iterdir()}
    foreign = sorted(present - _listed(target / MANIFEST)) if present else []
    if foreign:
        raise OutputExists(
            f"{target} holds files that are no output of a split, such as {foreign[0]!r}",
            hint="choose a new or empty directory",
        )


def _listed(manifest: Path) -> set[str]:
    """Names of the files that an earlier manifest accounts for."""
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["partitions"]
        files = {entry["file"] for entry in entries}
        return files | {data["file"] for entry in entries for data in entry.get("data", ())} | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _swap(staging: Path, target: Path) -> None:
    """Put the finished directory in place; the old one goes only once the new one is there."""
    if not target.exists():
        staging.replace(target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
    target.replace(aside / target.name)
    try:
        staging.replace(target)
    except OSError:
        (aside / target.name).replace(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
