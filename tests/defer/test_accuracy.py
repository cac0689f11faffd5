"""Error budgets, how far outputs are apart, and the requests on which that is measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from defer.accuracy import Budget, combined, deviation, parse_budget
from defer.calibration import MOST, generated, load
from defer.errors import FileMissing, UsageError, WrongInput
from node_agent.messages import TensorSpec

SPECS = (TensorSpec("x", "float32", (1, 3)), TensorSpec("ids", "int64", (1, 2)))


def test_budgets_read_back_as_they_are_written() -> None:
    assert parse_budget("0.01") == Budget("relative", 0.01)
    assert parse_budget("top1:0.05") == Budget("top1", 0.05)
    for budget in (Budget("relative", 0.0125), Budget("top1", 0.5)):
        assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "0", "1", "-0.1", "nan", "1%", "top1", "top1:", "top5:0.1", "inf"])
def test_what_is_no_budget_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="not an error budget"):
        parse_budget(text)


def test_relative_deviation_is_that_of_the_worst_output() -> None:
    exact = {"a": np.array([3.0, 4.0]), "b": np.array([[10.0, 0.0]])}
    assert deviation("relative", exact, exact) == 0
    got = {"a": np.array([3.0, 4.5]), "b": np.array([[10.0, 0.1]])}
    assert deviation("relative", exact, got) == pytest.approx(0.1)
    assert deviation("relative", {"a": np.zeros(2)}, {"a": np.ones(2)}) == math.inf
    assert deviation("relative", {"a": np.zeros(2)}, {"a": np.zeros(2)}) == 0


def test_infinities_that_belong_there_do_not_count_and_others_do() -> None:
    masked = {"a": np.array([1.0, -np.inf])}
    assert deviation("relative", masked, {"a": np.array([1.1, -np.inf])}) == pytest.approx(0.1)
    assert deviation("relative", masked, {"a": np.array([1.0, 0.0])}) == math.inf
    assert deviation("relative", {"a": np.ones(2)}, {"a": np.array([1.0, np.nan])}) == math.inf


def test_top1_counts_rows_whose_class_changes() -> None:
    exact = {"logits": np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.1], [0.0, 5.0]]), "other": np.zeros(3)}
    got = {"logits": np.array([[0.9, 1.0], [0.0, 1.0], [0.2, 0.1], [0.0, 5.0]]), "other": np.ones(3)}
    assert deviation("top1", exact, got) == 0.25
    assert combined("top1", [0.25, 0.75]) == 0.5
    assert combined("relative", [0.25, 0.75]) == 0.75
    assert combined("relative", []) == 0


def test_made_up_requests_are_equal_in_every_run_and_differ_from_each_other() -> None:
    first, second = generated(SPECS), generated(SPECS)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    assert first[0]["ids"].dtype == np.int64


def test_requests_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.npz"
    np.savez(path, x=np.ones((1, 3), np.float64), ids=np.zeros((1, 2), np.int32), unused=np.zeros(9))
    (one,) = load(path, SPECS)
    assert (one["x"].dtype, one["ids"].dtype) == (np.float32, np.int64)
    np.savez(path, x=np.ones((MOST + 9, 1, 3)), ids=np.zeros((MOST + 9, 1, 2), np.int64))
    assert len(load(path, SPECS)) == MOST


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.ones((1, 3))}, "no array 'ids'"),
        ({"x": np.ones((1, 4)), "ids": np.zeros((1, 2), np.int64)}, r"shape \[1, 4\], neither \[1, 3\]"),
        ({"x": np.ones((0, 1, 3)), "ids": np.zeros((1, 2), np.int64)}, r"shape \[0, 1, 3\]"),
        ({"x": np.ones((1, 3)), "ids": np.zeros((1, 2))}, "is of float64, the input of int64"),
        ({"x": np.ones((2, 1, 3)), "ids": np.zeros((3, 1, 2), np.int64)}, "different numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(
    tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str
) -> None:
    path = tmp_path / "calibration.npz"
    np.savez(path, **arrays)
    with pytest.raises(WrongInput, match=complaint):
        load(path, SPECS)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        load(tmp_path / "none.npz", SPECS)
    for content in (b"", b"PK\x03\x04 truncated", np.arange(3).tobytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(WrongInput, match=r"not an \.npz") as caught:
            load(tmp_path / "bad.npz", SPECS)
        assert "pickle" not in str(caught.value)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(WrongInput, match=r"not an \.npz"):
        load(tmp_path / "one.npy", SPECS)
