"""What keeps a model from being mended is told once, and tried again later and later."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from defer import api
from defer.dispatcher.mending import without_agent
from defer.dispatcher.returning import lacking
from defer.dispatcher.tidying import Tidying
from defer.dispatcher.unmended import AGAIN_S, DOUBLED, REASONS, SOON, Unmended
from defer.dispatcher.uploads import Uploads
from defer.documents.cluster import loads_cluster
from node_agent.messages import Chunk, Want
from tests.defer.test_api import ref

TEXT = """
[[device]]
name = "a"
address = "127.0.0.1:7700"
[[device]]
name = "b"
dials = true
"""


def test_a_reason_is_told_once_and_tried_later_and_later_while_it_stays() -> None:
    known = Unmended()
    found = [known.failed("m", "epoch 1763755200000 is full") for _ in range(SOON)]
    assert [each.new for each in found] == [True, False, False, False]
    assert [each.stays for each in found] == [False, False, False, True]
    assert {each.pause_s for each in found} == {AGAIN_S}
    assert not known.failed("m", "epoch 1763755200001 is full").new, "another number is no other reason"
    assert known.failed("m", "something else").new
    assert known.failed("other", "epoch 1763755200000 is full").new
    late = [known.failed("m", "epoch 1763755200000 is full") for _ in range(20)]
    assert not any(each.new or each.stays for each in late)
    assert late[-1].pause_s == AGAIN_S * 2**DOUBLED


def test_what_was_mended_is_told_anew_and_reasons_are_bounded() -> None:
    known = Unmended()
    assert known.failed("m", "why").new
    known.mended("m")
    assert known.failed("m", "why").new
    for number in range(REASONS):
        known.failed("m", f"reason {number}")
    assert known.failed("m", "why").new
    known.prune(["other"])
    assert known.failed("m", "why").new


def test_devices_of_a_plan_that_the_cluster_has_no_more() -> None:
    cluster = loads_cluster(TEXT)
    leg: Any = SimpleNamespace(
        stages=[SimpleNamespace(device=name) for name in ("a", "gone")],
        transfers=[
            SimpleNamespace(path=("a", "dispatcher", "a")),
            SimpleNamespace(path=("a", "b", "gone")),
        ],
    )
    plan: Any = SimpleNamespace(legs=((1.0, leg),))
    assert without_agent(plan, cluster) == {"gone", "dispatcher"}, "no agent runs beside the dispatcher"
    assert lacking(("b", "gone"), cluster) == "the cluster has no gone any more; no answer from b"
    assert lacking(("a", "b"), cluster) == "no answer from a, b"


def test_nothing_is_removed_while_something_is_being_cut(tmp_path: Path) -> None:
    used = {"kept"}
    tidying = Tidying(tmp_path / "parts", lambda: used)
    tidying.tidy()  # there is no folder yet
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("kept", "left", "cut"):
        (folder / name).touch()
    with tidying.spared():
        with tidying.spared():
            tidying.tidy()
        assert len(list(folder.iterdir())) == 3
        used.add("cut")
    assert {path.name for path in folder.iterdir()} == used
    (folder / "left").touch()
    with tidying.spared():
        pass
    assert (folder / "left").exists(), "nobody has asked for it"


def uploaded(uploads: Uploads, content: bytes) -> api.ModelFile:
    file = ref(content, ".onnx")
    uploads.want(Want(0, (file,)))
    uploads.chunk(Chunk(0, file, 0), content)
    return api.ModelFile("m.onnx", file)


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if len(path.stem) == 64}


def test_an_upload_goes_with_the_last_that_needs_it_and_no_sooner(tmp_path: Path) -> None:
    uploads = Uploads.open(tmp_path)
    given_up, failed, waiting, both = (
        uploaded(uploads, content) for content in (b"given up", b"failed", b"waiting", b"both")
    )
    for file in (given_up, failed, both):
        uploads.assemble((file,))
    uploads.want(Want(0, (both.file,)))  # another one will deploy the same
    uploads.taken((given_up,))
    uploads.taken((both,))
    uploads.tidy([])
    left = {file.file.sha256 for file in (failed, waiting, both)}
    assert names(tmp_path / "files") == left
    path = uploads.assemble((both,))
    uploads.taken((both,))
    uploads.tidy([path])
    assert names(tmp_path / "files") == left
    uploads.tidy([])
    assert names(tmp_path / "files") == {failed.file.sha256, waiting.file.sha256}


def test_what_the_process_before_deployed_is_found_where_it_is_now_and_goes_when_it_is_replaced(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    uploads = Uploads.open(Path("state"))
    file = uploaded(uploads, b"model")
    path = uploads.assemble((file,))
    uploads.taken((file,))
    assert path.is_absolute()
    (tmp_path / "state").rename(tmp_path / "moved")
    again = Uploads.open(tmp_path / "moved")
    found = again.find(str(path))
    assert Path(found).read_bytes() == b"model"
    assert again.find("/nowhere/models/x.onnx") == "/nowhere/models/x.onnx"
    assert again.find("") == ""
    again.tidy([Path(found)])
    assert Path(found).exists()
    again.tidy([])
    assert names(tmp_path / "moved" / "files") == set()
