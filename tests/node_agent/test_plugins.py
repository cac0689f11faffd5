"""Engines and codecs of other packages, as entry points name them."""

from __future__ import annotations

import logging
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from node_agent import codecs, engines, plugins
from node_agent.engines.choice import WithFallback
from node_agent.frames import check_headers, check_lengths, pack_item, unpack

DOCS = Path(__file__).resolve().parents[2] / "docs"


def shown(page: str, name: str) -> str:
    """The code block of a page that begins with the comment `# name`."""
    found = re.findall(r"^```\w+\n(# [\w.]+)\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    return next(code for first, code in found if first == f"# {name}")


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The registries, to be changed by a test, and the guides' modules to be imported."""
    monkeypatch.setattr(engines, "_KNOWN", dict(engines._KNOWN))
    before = dict(codecs.CODECS)
    (tmp_path / "my_engine.py").write_text(shown("own-engine.md", "my_engine.py"))
    (tmp_path / "my_codec.py").write_text(shown("own-codec.md", "my_codec.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_engine", "my_codec"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    codecs.CODECS.clear()
    codecs.CODECS.update(before)


def engine(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, plugins.ENGINES)


def codec(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, plugins.CODECS)


def test_an_engine_of_another_package_is_known_by_name() -> None:
    assert plugins.register([engine("evaluator", "my_engine:Evaluator")]) == ("evaluator",)
    assert isinstance(engines.engine_named("evaluator"), WithFallback)
    [info] = [each for each in engines.inventory() if each.name == "evaluator"]
    assert not info.missing
    assert info.provider == "numpy"


def test_an_engine_that_breaks_is_missing_and_no_other() -> None:
    plugins.register([engine("broken", "no_such_module:Engine")])
    found = {each.name: each.missing for each in engines.inventory()}
    assert "no_such_module" in found["broken"]
    assert not found["onnxruntime-cpu"]


def test_a_codec_of_another_package_travels() -> None:
    assert plugins.register([codec("zlib", "my_codec:Zlib")]) == ("zlib",)
    assert codecs.is_lossless("zlib")
    assert "zlib" not in codecs.EVERYWHERE
    array = np.tile(np.arange(8, dtype=np.float32), 100)
    headers, frames = pack_item({"x": array}, "zlib")
    assert headers[0].codec == "zlib"
    assert headers[0].nbytes < array.nbytes / 10
    check_headers(headers)
    check_lengths(headers, frames)
    np.testing.assert_array_equal(unpack(headers, frames)["x"], array)


@pytest.mark.parametrize(
    ("point", "says"),
    [
        (engine("tensorrt", "my_engine:Evaluator"), "there is an engine 'tensorrt' already"),
        (engine("auto", "my_engine:Evaluator"), "there is an engine 'auto' already"),
        (engine("evaluator", "my_engine"), "is not module:Class"),
        (codec("raw", "my_codec:Zlib"), "calls itself 'zlib'"),
        (codec("zlib", "my_codec:Gone"), "AttributeError"),
        (codec("zlib", "no_such_module:Zlib"), "ModuleNotFoundError"),
        (codec("zlib", "builtins:int"), "AttributeError"),
    ],
)
def test_what_cannot_be_is_left_out_with_a_warning(
    point: EntryPoint, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = engines.names(), dict(codecs.CODECS)
    with caplog.at_level(logging.WARNING, "defer.plugins"):
        assert plugins.register([point]) == ()
    assert says in caplog.text
    assert (engines.names(), codecs.CODECS) == known


def test_a_codec_needs_a_free_name_and_values_that_are_known() -> None:
    class Odd(type(codecs.CODECS["raw"])):  # type: ignore[misc]
        name = "odd"
        values = "nothing"

    with pytest.raises(ValueError, match="which is no codec"):
        codecs.register(Odd())
    with pytest.raises(ValueError, match="there is a codec 'raw' already"):
        codecs.register(codecs.CODECS["raw"])


def test_loading_looks_once() -> None:
    assert plugins.load() is plugins.load()
