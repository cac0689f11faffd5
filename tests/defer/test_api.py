"""The dispatcher's api: messages, the admin connection, uploads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import zmq

from defer import api
from defer.admin import Admin
from defer.dispatcher import uploads as uploads_module
from defer.dispatcher.uploads import Uploads
from defer.errors import (
    DeferError,
    DispatcherUnreachable,
    FileMissing,
    InvalidModel,
    NotReady,
    ProtocolMismatch,
    UsageError,
)
from defer.model_files import model_files
from defer.transfer import CHUNK_BYTES
from defer.upload import upload
from node_agent.errors import AgentError
from node_agent.messages import Chunk, Done, FileRef, Have, Progress, Taken, Want


def test_messages_round_trip_and_older_ones_are_read() -> None:
    deploy = api.Deploy(
        3, "m", (api.ModelFile("m.onnx", FileRef("0" * 64, 1, ".onnx")),), objective="throughput"
    )
    assert api.decode(api.encode(deploy)) == deploy
    plain = msgspec.msgpack.decode(api.encode(deploy))
    del plain["shapes"], plain["profile"]
    plain["of a later version"] = 1
    assert api.decode(msgspec.msgpack.encode(plain)) == deploy


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", msgspec.msgpack.encode({"t": "deploy", "id": 1}), b"\x81" * 2000]
)
def test_what_is_not_a_message(data: bytes) -> None:
    with pytest.raises(ProtocolMismatch, match="not a message"):
        api.decode(data)


def test_a_message_over_the_limit() -> None:
    with pytest.raises(ProtocolMismatch, match="over the limit"):
        api.decode(bytes(api.MAX_MESSAGE + 1))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\x", "a\0b"])
def test_paths_that_leave_the_models_folder(path: str) -> None:
    with pytest.raises(InvalidModel, match="leaves the model's folder"):
        api.check_model_path(path)


def test_what_is_there_but_no_file_is_told_apart() -> None:
    with pytest.raises(FileMissing, match=r"/dev/zero: this is no regular file"):
        model_files(Path("/dev/zero"))
    for wrong in ((2**31,), (3, 0), (2**21, 2**21)):
        with pytest.raises(UsageError, match="'x' cannot have the shape"):
            api.check_shapes({"x": wrong})
    api.check_shapes({"x": (2**31 - 1,), "scalar": (), "y": (2**20, 2**20)})


@pytest.mark.integration
class TestAdmin:
    def test_status_and_models(self, server: Any) -> None:
        with Admin(server.address) as admin:
            assert admin.ask(api.GetStatus(0), api.ServerStatus, timeout=5).name == "test"
            models = admin.ask(api.ListModels(0), api.Models, timeout=5)
        assert models.data_port == server.shell.data_port
        assert models.models[0].name == "twice"

    def test_progress_and_errors(self, server: Any) -> None:
        seen: list[Progress] = []
        with Admin(server.address) as admin:
            with pytest.raises(NotReady, match="cannot deploy m"):
                admin.ask(api.Deploy(0, "m", ()), api.Deployed, timeout=5, on_progress=seen.append)
            assert [(step.what, step.fraction) for step in seen] == [("planning", 0.5)]
            admin.ask(api.Undeploy(0, "m"), Done, timeout=5)

    def test_a_silent_port(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        silent = context.socket(zmq.ROUTER)
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(DispatcherUnreachable, match=r"within 0\.2 s"):
            Admin(f"127.0.0.1:{port}", connect_s=0.2).open()
        context.destroy(linger=0)

    def test_garbage_is_answered_with_a_fault(self, server: Any) -> None:
        context: zmq.Context[Any] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.RCVTIMEO = 5000
        dealer.connect(f"tcp://{server.address}")
        for garbage in (b"\xc1", msgspec.msgpack.encode({"t": "models", "id": 1, "data_port": 1})):
            dealer.send(garbage)
            assert msgspec.msgpack.decode(dealer.recv())["t"] == "fault"
        context.destroy(linger=0)

    def test_another_protocol_version(self, server: Any) -> None:
        context: zmq.Context[Any] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.RCVTIMEO = 5000
        dealer.connect(f"tcp://{server.address}")
        hello = {"t": "hello", "id": 1, "minimum": 90, "version": 91, "name": "@client", "role": "client"}
        dealer.send(msgspec.msgpack.encode(hello))
        told = msgspec.msgpack.decode(dealer.recv())
        assert (told["t"], told["code"]) == ("fault", "incompatible-version")
        context.destroy(linger=0)


def ref(data: bytes, suffix: str = ".bin") -> FileRef:
    return FileRef(hashlib.sha256(data).hexdigest(), len(data), suffix)


def test_a_model_is_put_together_from_its_files(tmp_path: Path) -> None:
    uploads = Uploads.open(tmp_path)
    graph, weights = b"graph", b"weights"
    files = (
        api.ModelFile("m.onnx", ref(graph, ".onnx")),
        api.ModelFile("sub/w.bin", ref(weights)),
    )
    assert uploads.want(Want(4, tuple(file.file for file in files))) == Have(4, (0, 0))
    with pytest.raises(AgentError, match="has not been shipped"):
        uploads.assemble(files)
    uploads.chunk(Chunk(0, files[0].file, 0), graph)
    assert uploads.chunk(Chunk(0, files[1].file, 0), weights[:3]).offset == 3
    assert uploads.want(Want(0, (files[1].file,))).offsets == (3,)
    uploads.chunk(Chunk(0, files[1].file, 3), weights[3:])
    path = uploads.assemble(files)
    assert path == uploads.assemble(files)
    assert path.read_bytes() == graph
    assert (path.parent / "sub/w.bin").read_bytes() == weights
    with pytest.raises(InvalidModel):
        uploads.assemble((files[0], api.ModelFile("../w.bin", files[1].file)))
    with pytest.raises(InvalidModel, match="at least one file"):
        uploads.assemble(())


def test_what_no_model_needs_any_more_is_removed(tmp_path: Path) -> None:
    uploads = Uploads.open(tmp_path)
    paths = {}
    for content in (b"kept", b"dropped"):
        file = ref(content, ".onnx")
        uploads.chunk(Chunk(0, file, 0), content)
        paths[content] = uploads.assemble((api.ModelFile("m.onnx", file),))
    uploads.chunk(Chunk(0, ref(b"just sent"), 0), b"just sent")
    uploads.chunk(Chunk(0, ref(b"arriving"), 0), b"arr")
    uploads.chunk(Chunk(0, ref(b"sent long ago"), 0), b"sent long ago")
    for content in (b"kept", b"dropped", b"sent long ago"):
        (path,) = (tmp_path / "files").glob(f"{ref(content).sha256}.*")
        os.utime(path, (0, 0))
    uploads.tidy([paths[b"kept"], tmp_path / "of somebody else.onnx"])
    assert paths[b"kept"].read_bytes() == b"kept"
    assert not paths[b"dropped"].parent.exists()
    held = [ref(b"kept", ".onnx"), ref(b"dropped", ".onnx"), ref(b"just sent"), ref(b"arriving")]
    assert uploads.want(Want(0, (*held, ref(b"sent long ago")))).offsets == (4, 0, 9, 3, 0)
    assert uploads.chunk(Chunk(0, ref(b"arriving"), 3), b"iving").offset == 8
    uploads.tidy([])
    assert list((tmp_path / "models").iterdir()) == []


def external_model(folder: Path, location: str = "w.bin", size: int = 1000) -> Path:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [size], bytes(4 * size), raw=True)
    branch = onnx.helper.make_graph([], "then", [], [], [tensor])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = onnx.helper.make_graph([node], "g", [], [])
    model = onnx.helper.make_model(graph)
    for attribute in model.graph.node[0].attribute:
        held = attribute.g.initializer[0]
        onnx.external_data_helper.set_external_data(held, location)
        held.data_location = onnx.TensorProto.EXTERNAL
        held.ClearField("raw_data")
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_files_that_are_asked_for_and_never_come_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "MOST_WANTED", 3)
    uploads = Uploads.open(tmp_path)
    for number in range(10):
        uploads.want(Want(number, (FileRef(f"{number:064x}", 5),)))
    assert len(uploads._wanted) == len(uploads._wanted_at) == 3
    uploads.taken([api.ModelFile("m.onnx", FileRef(f"{number:064x}", 5)) for number in range(10)])
    assert not uploads._wanted
    assert not uploads._wanted_at


def test_files_of_a_model_include_external_data_of_its_subgraphs(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(os.urandom(4000))
    told: list[tuple[int, int]] = []
    files = model_files(external_model(tmp_path), lambda done, total: told.append((done, total)))
    assert [file.path for file in files] == ["m.onnx", "w.bin"]
    assert [file.file.suffix for file in files] == [".onnx", ".bin"]
    assert told[-1][0] == told[-1][1]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FileMissing, match=r"'w\.bin' does not exist"):
        model_files(tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match="leaves the model's folder"):
        model_files(external_model(tmp_path, "../../etc/passwd"))
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(InvalidModel, match="not an ONNX model"):
        model_files(tmp_path / "bad.onnx")
    with pytest.raises(FileMissing):
        model_files(tmp_path / "none.onnx")


@pytest.mark.integration
def test_upload_sends_what_is_missing_and_only_that(make_server: Callable[..., Any], tmp_path: Path) -> None:
    server = make_server()
    held = Uploads.open(tmp_path / "state")
    server.verbs.want, server.verbs.chunk = held.want, held.chunk
    data = os.urandom(3 * CHUNK_BYTES + 17)
    small = os.urandom(5)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "small").write_bytes(small)
    files = {
        api.ModelFile("big", ref(data)): tmp_path / "big",
        api.ModelFile("small", ref(small)): tmp_path / "small",
    }
    held.chunk(Chunk(0, ref(data), 0), data[:CHUNK_BYTES])
    told: list[tuple[int, int]] = []
    with Admin(server.address) as admin:
        sent = upload(admin, files, lambda done, total: told.append((done, total)))
        assert sent == len(data) + len(small) - CHUNK_BYTES
        assert told[-1] == (sent, sent)
        assert upload(admin, files) == 0
        (tmp_path / "big").write_bytes(b"x" + data[1:])
        other = {api.ModelFile("big", ref(data[::-1])): tmp_path / "big"}
        with pytest.raises(DeferError, match=r"sha256|content|corrupt"):
            upload(admin, other)


def test_taken_and_have_are_the_agents_own() -> None:
    assert api.decode(api.encode(Taken(1, 5))) == Taken(1, 5)
    assert api.decode(api.encode(Have(1, (5,)))) == Have(1, (5,))


def test_a_folder_and_an_empty_file_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="a folder, not a file"):
        model_files(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InvalidModel, match="the file is empty"):
        model_files(tmp_path / "empty.onnx")
