"""What a dispatcher keeps is for its own user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import models
import partitioner
from defer import api
from defer.block_profiling import BLOCK_COSTS, BlockCosts
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.private import make_private
from defer.dispatcher.state_lock import lock
from defer.dispatcher.uploads import Uploads
from defer.documents.cluster import loads_cluster
from defer.errors import FileProblem, PortInUse, StateInUse
from defer.profiling import _cached, _close_to_others, _remember
from node_agent.messages import Chunk
from tests.defer.test_api import ref

CLUSTER = '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]


def test_everything_that_is_written_is_private(tmp_path: Path) -> None:
    state = tmp_path / "parent" / "state"
    make_private(state)
    uploads = Uploads.open(state)
    graph, weights = b"graph", b"weights"
    files = (api.ModelFile("m.onnx", ref(graph, ".onnx")), api.ModelFile("sub/w.bin", ref(weights)))
    uploads.chunk(Chunk(0, files[0].file, 0), graph)
    uploads.chunk(Chunk(0, files[1].file, 0), weights)
    uploads.assemble(files)
    lock(state / "lock", "127.0.0.1:7600").close()
    model = models.save("tiny_residual", tmp_path / "m.onnx")
    for part in partitioner.split(model, (2,)):
        partitioner.write_store(part, state / "parts")
    assert list((state / "parts").iterdir())
    assert open_to_others(state / "parts") + open_to_others(state / "files") == []
    assert open_to_others(state) == []
    assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["/proc/x", "a-file", "a-file/below"])
def test_a_state_that_cannot_be_made_is_a_failed_write(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(FileProblem) as caught:
        make_private(tmp_path / place)
    assert (caught.value.code, caught.value.exit_code) == ("file-problem", 74)
    assert str(tmp_path / place) in str(caught.value)


def test_a_state_that_another_dispatcher_holds_is_worth_another_try(tmp_path: Path) -> None:
    with lock(tmp_path / "lock", "127.0.0.1:7600"):
        with pytest.raises(StateInUse, match="keeps its state") as caught:
            lock(tmp_path / "lock", "127.0.0.1:7610")
        assert caught.value.exit_code == 75
        with pytest.raises(PortInUse, match="already runs"):
            lock(tmp_path / "lock", "127.0.0.1:7600")


def test_what_was_open_to_others_is_closed_at_the_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name in ("parts", "models/one/sub", "profiles"):
        (state / name).mkdir(parents=True)
    for name in ("parts/w.bin", "models/one/m.onnx", "models/one/sub/w.bin", "profiles/p.json", "lock"):
        (state / name).write_bytes(b"weights")
    assert len(open_to_others(state)) == 11
    with Daemon(loads_cluster(CLUSTER), state):
        assert open_to_others(state) == []


def test_measurements_are_private_also_where_an_earlier_version_left_them_open(tmp_path: Path) -> None:
    costs = BlockCosts(BLOCK_COSTS, "e", (1.0,), (0,), {}, {}, 0.0, 0.0)
    cache = tmp_path / "cache" / "profiles"
    _remember(cache / "one.json", costs)
    assert open_to_others(cache) == []
    cache.chmod(0o755)
    _close_to_others(cache)
    assert open_to_others(cache) == []
    assert _cached(cache / "one.json") == costs
    _close_to_others(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_directory_of_others_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared" / "notes").write_text("for all")
    make_private(tmp_path / "shared")
    assert len(open_to_others(tmp_path / "shared")) == 2
