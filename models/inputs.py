"""Inputs such as the networks would meet."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.catalog import Description, describe
from models.errors import WrongArgumentError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CLS, _SEP, _FIRST_WORD, _VOCABULARY = 101, 102, 1000, 30_522
_TINY_VOCABULARY = 100
_LONGEST = 512


def example_inputs(
    name: str, *, batch: int = 1, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Inputs for a network: standardised images and vectors, or two sentences of word ids for BERT.

    Args:
        name: One of `models.NAMES`.
        batch: Batch size; 1 where the network's is fixed.
        seed: Seed, ≥ 0. Every seed gives other inputs.
        sizes: Sizes of other free dimensions, such as `{"sequence": 64}`, where the usual ones will not do.

    Returns:
        Arrays by input name, in the model's order.

    Raises:
        UnknownModelError: There is no such network.
        WrongArgumentError: The batch or another size does not fit, or the seed is negative.
    """
    import numpy as np

    description = describe(name)
    bound = _bindings(description, batch, seed, sizes or {})
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name == "bert_base":
        return _sentences(rng, bound["batch"], bound["sequence"])
    made: dict[str, npt.NDArray[Any]] = {}
    for key, shape in description.input_shapes.items():
        lengths = [bound[size] if isinstance(size, str) else size for size in shape]
        if description.dtypes.get(key) == "int64":
            made[key] = rng.integers(0, _TINY_VOCABULARY, lengths, dtype=np.int64)
        else:
            made[key] = rng.standard_normal(lengths, dtype=np.float32).astype(
                description.dtypes.get(key, "float32")
            )
    return made


def _sentences(rng: np.random.Generator, batch: int, length: int) -> dict[str, npt.NDArray[Any]]:
    """Two segments per row; rows after the first may be shorter and padded, as a tokenizer makes them."""
    import numpy as np

    ids = rng.integers(_FIRST_WORD, _VOCABULARY, (batch, length), dtype=np.int64)
    mask = np.ones((batch, length), dtype=np.int64)
    segments = np.zeros((batch, length), dtype=np.int64)
    for row in range(batch):
        used = length if row == 0 else int(rng.integers(max(1, length // 2), length + 1))
        middle = used // 2
        ids[row, 0] = _CLS
        if used > 1:
            ids[row, [middle, used - 1]] = _SEP
        segments[row, middle + 1 : used] = 1
        ids[row, used:], mask[row, used:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def _bindings(description: Description, batch: int, seed: int, sizes: Mapping[str, int]) -> dict[str, int]:
    name = description.name
    if seed < 0:
        raise WrongArgumentError(
            f"the seed of the inputs of {name!r} is {seed}", hint="give a seed of 0 or more"
        )
    if batch != 1 and not description.free_batch:
        raise WrongArgumentError(f"{name!r} has a fixed batch of 1, not {batch}", hint="leave the batch at 1")
    for dimension in sizes:
        if dimension not in description.sizes:
            known = ", ".join(description.sizes) or "none but the batch"
            raise WrongArgumentError(
                f"{name!r} has no free dimension {dimension!r}", hint=f"its free dimensions: {known}"
            )
    bound = {"batch": batch, **description.sizes, **sizes}
    for dimension, length in bound.items():
        if length < 1:
            raise WrongArgumentError(f"the {dimension} of {name!r} is {length}", hint="give 1 or more")
    if name == "bert_base" and bound["sequence"] > _LONGEST:
        raise WrongArgumentError(
            f"the sequence of {name!r} is {bound['sequence']}, and it takes at most {_LONGEST}",
            hint="it has no more positions; give fewer tokens",
        )
    return bound
