"""TensorRT's version table."""

from __future__ import annotations

import pytest

from node_agent.engines.tensorrt_versions import DIALECTS, dialect, parse_version
from node_agent.errors import EngineMissingError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.3.0", (10, 3, 0)),
        ("10.14.1.48.post1", (10, 14, 1)),
        ("11.4.0.106", (11, 4, 0)),
        ("12.0", (12, 0, 0)),
    ],
)
def test_versions_are_read(text, parts):
    assert parse_version(text) == parts


def test_what_is_no_version_is_refused():
    with pytest.raises(EngineMissingError, match="cannot be read"):
        parse_version("unknown")


@pytest.mark.parametrize(
    ("text", "major"), [("10.3.0", 10), ("10.16.1.11", 10), ("11.0.0", 11), ("12.1.0", 11)]
)
def test_each_version_has_its_dialect(text, major):
    assert dialect(text).major == major


@pytest.mark.parametrize("text", ["8.6.1", "9.3.0", "10.0.1", "10.2.0"])
def test_old_versions_are_refused_with_what_to_do(text):
    with pytest.raises(EngineMissingError, match="too old") as caught:
        dialect(text)
    assert "10.3" in caught.value.hint


def test_the_table_is_in_order():
    assert [each.major for each in DIALECTS] == sorted(each.major for each in DIALECTS)
