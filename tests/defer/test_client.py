"""The client against a dispatcher with real sockets and a stage that doubles its input."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np
import pytest

import defer
from benchmarks.ports import free_ports
from defer import api, errors
from defer.client import AsyncClient, Client
from defer.client_encoding import plain
from defer.dispatcher import events as e
from defer.dispatcher.neighbours import link_of
from node_agent.messages import Credit, TensorSpec

pytestmark = pytest.mark.integration


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def x(value: float = 1, rows: int = 1) -> np.ndarray:
    return np.full((rows, 4), value, np.float32)


def test_infer_with_a_mapping_and_with_one_array(server: Any) -> None:
    with defer.Client(server.address) as client:
        outputs = client.infer({"x": x(3)})
        assert list(outputs) == ["y"]
        np.testing.assert_array_equal(outputs["y"], x(6))
        np.testing.assert_array_equal(client.infer(x(4, rows=3))["y"], x(8, rows=3))
        outputs["y"][0, 0] = 1  # the caller's own


@pytest.mark.parametrize("codec", ["raw", "lz4"])
@pytest.mark.parametrize("rows", [0, 1, 300_000])
def test_any_size(server: Any, codec: str, rows: int) -> None:
    def raw_double(header: list, frames: list) -> list:
        import lz4.block

        tensors = header[5]
        _, dtype, shape, used, _ = tensors[0]
        size = int(np.prod(shape)) * 4
        plain = lz4.block.decompress(frames[0], uncompressed_size=size) if used == "lz4" else frames[0]
        y = (np.frombuffer(plain, dtype) * np.float32(2)).tobytes()
        return [
            (["item", header[1], header[2], header[3] + 1, -1, [["y", dtype, shape, "raw", size]], ""], [y])
        ]

    server.stages[0].work = raw_double
    with Client(server.address, codec=codec) as client:
        np.testing.assert_array_equal(client.infer(x(1.5, rows))["y"], x(3, rows))


def test_submit_copies_its_inputs(server: Any) -> None:
    with Client(server.address) as client:
        buffer = x(0, rows=20_000)
        futures = []
        for value in range(5):
            buffer[:] = value
            futures.append(client.submit(buffer))
        assert [float(future.result(10)["y"][0, 0]) for future in futures] == [0, 2, 4, 6, 8]


def test_map_is_ordered_lazy_and_windowed(server: Any) -> None:
    taken = itertools.count()
    last = 0

    def endless() -> Any:
        nonlocal last
        for last in taken:
            yield x(last)

    with Client(server.address) as client:
        results = client.map(endless(), window=4)
        for number in range(50):
            assert float(next(results)["y"][0, 0]) == 2 * number
            assert last <= number + 4
        results.close()


def test_map_unordered_gives_each_once(server: Any) -> None:
    with Client(server.address) as client:
        values = [float(out["y"][0, 0]) for out in client.map([x(i) for i in range(30)], ordered=False)]
    assert sorted(values) == [2.0 * i for i in range(30)]


def test_map_waits_where_the_dispatcher_is_overloaded(make_server: Callable[..., Any]) -> None:
    server = make_server(e.Limits(requests=2))
    server.serve(server.stage(items=1))
    with Client(server.address) as client:
        values = [float(out["y"][0, 0]) for out in client.map((x(i) for i in range(40)), window=16)]
    assert values == [2.0 * i for i in range(40)]


def test_many_threads_share_a_client(server: Any) -> None:
    wrong: list[float] = []
    with Client(server.address) as client:

        def run(value: int) -> None:
            for _ in range(20):
                got = float(client.infer(x(value))["y"][0, 0])
                if got != 2 * value:
                    wrong.append(got)

        threads = [threading.Thread(target=run, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"q": x()}, r"'twice': it has no input 'q'; its inputs are x: float32\[N, M\]"),
        ({}, "input 'x' is missing"),
        ({"x": x().astype(np.float64)}, "element type float64"),
        ({"x": np.zeros(4, np.float32)}, r"shape \[4\]"),
        ({"x": np.array([[object()]])}, "Python objects"),
        ({"x": [["a"]]}, "cannot be made an array of float32"),
    ],
)
def test_wrong_inputs_are_found_before_sending(server: Any, inputs: Any, says: str) -> None:
    with Client(server.address) as client, pytest.raises(errors.WrongInput, match=says):
        client.infer(inputs)
    assert server.stages[0].seen == []


def test_lists_take_the_models_element_type(server: Any) -> None:
    with Client(server.address) as client:
        np.testing.assert_array_equal(client.infer([[1, 2]])["y"], np.array([[2, 4]], np.float32))


class Foreign:
    """A tensor of another library, which NumPy knows by DLPack alone."""

    def __init__(self, array: np.ndarray, broken: bool = False) -> None:
        self._array, self._broken = array, broken

    def __dlpack__(self, **options: Any) -> Any:
        if self._broken:
            raise BufferError("it is on another device")
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_tensors_of_other_libraries_come_by_dlpack(server: Any) -> None:
    with Client(server.address) as client:
        np.testing.assert_array_equal(client.infer(Foreign(x(3)))["y"], x(6))  # type: ignore[arg-type]
        with pytest.raises(errors.WrongInput, match="another device") as caught:
            client.infer(Foreign(x(3), broken=True))  # type: ignore[arg-type]
        assert caught.value.hint


def test_outputs_are_written_where_the_caller_wants_them(server: Any) -> None:
    room = np.zeros((2, 4), np.float32)
    with Client(server.address) as client:
        for value in (1, 2):
            outputs = client.infer(x(value, rows=2), into={"y": room})
            assert outputs["y"] is room
            np.testing.assert_array_equal(room, x(2 * value, rows=2))
        with pytest.raises(errors.WrongInput, match=r"float32\[3, 4\], the array for it is float32\[2, 4\]"):
            client.infer(x(1, rows=3), into={"y": room})
        with pytest.raises(errors.WrongInput, match="output 'z'"):
            client.infer(x(1), into={"z": room})


def test_wrong_output_and_unknown_model(server: Any) -> None:
    with Client(server.address) as client:
        with pytest.raises(errors.WrongInput, match="no output 'z'"):
            client.infer(x(), outputs=["z"])
        with pytest.raises(errors.UnknownModel, match="served: twice"):
            client.infer(x(), model="other")


def test_a_model_replaced_by_another_signature_is_noticed(server: Any) -> None:
    with Client(server.address) as client:
        client.infer(x())
        stage = server.stages[0]
        other = (TensorSpec("x", "float32", (4,)),)
        server.serve(stage, epoch=2, inputs=other, outputs=other_outputs())
        one = np.ones(4, np.float32)
        np.testing.assert_array_equal(client.infer(one)["y"], one * 2)


def other_outputs() -> tuple[TensorSpec, ...]:
    return (TensorSpec("y", "float32", (4,)),)


def test_nothing_deployed(make_server: Callable[..., Any]) -> None:
    with (
        Client(make_server().address) as client,
        pytest.raises(errors.NotReady, match="no model is deployed"),
    ):
        client.infer(x())


def test_overload_is_reported(make_server: Callable[..., Any]) -> None:
    server = make_server(e.Limits(requests=2))
    stage = server.stage()
    stage.hold = True
    server.serve(stage)
    with Client(server.address) as client:
        futures = [client.submit(x(i)) for i in range(3)]
        with pytest.raises(errors.Overloaded, match="limit 2"):
            futures[2].result(10)
        stage.hold = False
        assert float(futures[1].result(10)["y"][0, 0]) == 2


def test_what_never_fits_is_not_tried_again(make_server: Callable[..., Any]) -> None:
    server = make_server(e.Limits(nbytes=20))
    server.serve(server.stage())
    with Client(server.address) as client:
        for run in (lambda: client.infer(x(rows=2)), lambda: list(client.map([x(rows=2)]))):
            with pytest.raises(errors.TooLarge, match="too large: 32 B, at most 20 B") as caught:
                run()
            assert caught.value.hint == "split the batch"
        client.infer(x())


def test_a_deadline_passes(server: Any) -> None:
    server.stages[0].hold = True
    with Client(server.address) as client:
        with pytest.raises(errors.DeadlineExceeded, match="did not come back"):
            client.infer(x(), timeout=0.15)
        server.stages[0].hold = False
        client.infer(x())
        assert server.core(lambda core: core.requests) == {}
    with pytest.raises(errors.UsageError, match="leaves no time"):
        Client(server.address).infer(x(), timeout=0)
    with pytest.raises(errors.UsageError, match="number of seconds"):
        Client(server.address).infer(x(), timeout="2 s")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1.9e10, 1e9, 5e8])
def test_long_timeouts_and_none_at_all(server: Any, timeout: float) -> None:
    with Client(server.address, timeout=timeout) as client:
        assert float(client.infer(x(3))["y"][0, 0]) == 6
        for ordered in (True, False):
            results = client.map([x(1), x(2)], ordered=ordered)
            assert sorted(float(outputs["y"][0, 0]) for outputs in results) == [2, 4]


def test_the_device_is_lost(server: Any) -> None:
    server.stages[0].hold = True
    with Client(server.address) as client:
        future = client.submit(x())
        until(lambda: server.stages[0].seen)
        server.shell.post(e.DeviceLost("a", "no heartbeat"))
        with pytest.raises(FutureTimeout):
            future.result(0.2)
        server.stages[0].hold = False
        server.shell.post(e.DeviceBack("a"))
        assert future.result(10)["y"].shape == (1, 4)
        client.infer(x())


def test_nobody_there() -> None:
    port = free_ports(1)
    with (
        Client(f"127.0.0.1:{port}", connect_timeout=0.2) as client,
        pytest.raises(errors.DispatcherUnreachable, match="no dispatcher answers") as caught,
    ):
        client.infer(x())
    assert "defer serve" in caught.value.hint


def test_connecting_takes_no_longer_than_a_request_may() -> None:
    port = free_ports(1)
    with (
        Client(f"127.0.0.1:{port}", timeout=0.6) as client,
        pytest.raises(errors.DispatcherUnreachable, match=r"within 0\.6 s"),
    ):
        client.infer(x())


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        Client("nobody.invalid:7600", insecure=True) as client,
        pytest.raises(errors.DispatcherUnreachable, match=r"cannot resolve nobody\.invalid"),
    ):
        client.models()


def test_a_restarted_dispatcher_is_found_again(make_server: Callable[..., Any]) -> None:
    port = free_ports(2)
    first = make_server(None, port, port + 1)
    stage = first.stage()
    stage.hold = True
    first.serve(stage)
    with Client(first.address) as client:
        waiting = client.submit(x(5))
        until(lambda: stage.seen)
        first.stop()
        first.stages.clear()
        make_server(None, port, port + 1, serving=True)
        assert float(waiting.result(20)["y"][0, 0]) == 10
        assert float(client.infer(x(6))["y"][0, 0]) == 12


def test_a_broken_connection_to_the_stage_loses_nothing(server: Any) -> None:
    stage = server.stages[0]
    stage.hold = True
    with Client(server.address) as client:
        futures = [client.submit(x(i)) for i in range(4)]
        until(lambda: len(stage.seen) == 4)
        stage.break_connection.set()
        until(lambda: not stage.break_connection.is_set())
        stage.hold = False
        assert [float(future.result(20)["y"][0, 0]) for future in futures] == [0, 2, 4, 6]
    assert server.core(lambda core: core.counters.replayed) == 4


def test_a_stage_that_dials_fetches_its_items(make_server: Callable[..., Any]) -> None:
    server = make_server()
    server.serve(server.stage(fetch=True))
    with Client(server.address) as client:
        assert [float(o["y"][0, 0]) for o in client.map([x(i) for i in range(20)])] == [
            2.0 * i for i in range(20)
        ]


def test_a_window_of_none_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="at least 1"), Client("127.0.0.1:1") as client:
        list(client.map([], window=0))


def test_another_codec_or_address_is_refused_at_once() -> None:
    with pytest.raises(errors.UsageError, match="codec 'zip' is unknown"):
        Client(codec="zip")
    with pytest.raises(errors.InvalidCluster, match="no port"):
        Client("localhost")


def test_a_closed_client(server: Any) -> None:
    client = Client(server.address)
    server.stages[0].hold = True
    future = client.submit(x())
    until(lambda: server.stages[0].seen)
    client.close()
    with pytest.raises(errors.Cancelled, match="client was closed"):
        future.result(5)
    with pytest.raises(errors.Cancelled):
        client.infer(x())
    client.close()


def test_no_future_waits_for_ever_when_the_clients_thread_fails(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.stages[0].hold = True
    with Client(server.address) as client:
        pending = client.submit(x())
        until(lambda: server.stages[0].seen)
        session = client._requests._session
        assert session is not None

        def fail(*_: object) -> None:
            raise KeyError("broken")

        monkeypatch.setattr(session._core, "handle", fail)
        futures = [pending, *(client.submit(x()) for _ in range(3))]
        for future in futures:
            with pytest.raises(errors.Internal, match="broken"):
                future.result(10)
        with pytest.raises(errors.Internal, match="broken"):
            client.infer(x())
    assert "the thread defer-client failed" in caplog.text


def test_a_dispatcher_that_stops_answers_what_it_has_accepted(server: Any) -> None:
    server.stages[0].hold = True
    with Client(server.address) as client:
        futures = [client.submit(x()) for _ in range(20)]  # more than the stage has credit for
        until(lambda: server.core(lambda core: len(core.requests)) == 20)
        server.shell.post(e.Stopped())
        server.shell.close()
        for future in futures:
            with pytest.raises(errors.NotReady, match="shutting down"):
                future.result(10)


def test_a_cancelled_future_is_forgotten(server: Any) -> None:
    server.stages[0].hold = True
    with Client(server.address) as client:
        future = client.submit(x())
        assert future.cancel()
        server.stages[0].hold = False
        client.infer(x())
        with pytest.raises(CancelledError):
            future.result()


@pytest.mark.parametrize("awaited", [False, True])
def test_urgent_requests_pass_those_that_wait(make_server: Callable[..., Any], awaited: bool) -> None:
    server = make_server()
    stage = server.stage(items=0)
    server.serve(stage)
    order: list[float] = []
    real = stage.work

    def let() -> None:
        server.shell.post(e.CreditArrived(link_of(stage.first), Credit(8, 1 << 20)))

    def noting(header: list, frames: list) -> list:
        order.append(float(np.frombuffer(frames[0], np.float32)[0]))
        return real(header, frames)

    stage.work = noting
    priorities = (0, 0, 20, 0, 1)
    with Client(server.address) as client:
        if awaited:

            async def ask() -> None:
                async with AsyncClient(server.address) as other:
                    tasks = []
                    for number, priority in enumerate(priorities):
                        tasks.append(other.submit(x(number), priority=priority))
                        await asyncio.to_thread(
                            until, lambda n=number: server.core(lambda core: len(core.requests)) == n + 1
                        )
                    let()
                    await asyncio.gather(*tasks)

            asyncio.run(ask())
        else:
            futures = []
            for number, priority in enumerate(priorities):
                futures.append(client.submit(x(number), priority=priority))
                until(lambda n=number: server.core(lambda core: len(core.requests)) == n + 1)
            let()
            for future in futures:
                future.result(10)
        with pytest.raises(errors.UsageError, match="a priority of -1 is not from 0"):
            client.infer(x(), priority=-1)
    assert order == [4, 0, 1, 3, 2]


def test_models_and_status(server: Any) -> None:
    with Client(server.address) as client:
        (info,) = client.models()
        assert (info.name, info.state, info.inputs[0].shape) == ("twice", "ready", ("N", "M"))
        assert client.status().name == "test"


def test_metadata_is_asked_once(server: Any) -> None:
    with Client(server.address) as client:
        for _ in range(10):
            client.infer(x())
    assert server.verbs.asked == 1


def test_the_asyncio_client(server: Any) -> None:
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            assert float((await client.infer(x(2)))["y"][0, 0]) == 4
            together = await asyncio.gather(*(client.infer(x(i)) for i in range(20)))
            assert [float(out["y"][0, 0]) for out in together] == [2.0 * i for i in range(20)]
            buffer = x(7)
            future = client.submit(buffer)
            buffer[:] = 0
            assert float((await future)["y"][0, 0]) == 14
            mapped = [float(out["y"][0, 0]) async for out in client.map(x(i) for i in range(10))]
            assert mapped == [2.0 * i for i in range(10)]

            async def source() -> Any:
                for value in range(5):
                    yield x(value)

            mapped = [float(out["y"][0, 0]) async for out in client.map(source(), ordered=False)]
            assert sorted(mapped) == [0, 2, 4, 6, 8]
            with pytest.raises(errors.WrongInput):
                await client.infer(np.zeros(3, np.float32))
            server.stages[0].hold = True
            with pytest.raises(errors.DeadlineExceeded):
                await client.infer(x(), timeout=0.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.infer(x()), 0.05)
            server.stages[0].hold = False
            assert (await client.models())[0].name == "twice"
            assert (await client.status()).name == "test"

    asyncio.run(run())


def test_nothing_is_left_behind(make_server: Callable[..., Any], open_sockets: Callable[[], int]) -> None:
    server = make_server()
    server.serve(server.stage())
    with Client(server.address) as client:
        client.infer(x())
    threads = {thread.name for thread in threading.enumerate()}
    assert "defer-client" not in threads
    before = open_sockets()
    for _ in range(5):
        with Client(server.address) as client:
            client.infer(x())
    assert open_sockets() <= before + 5  # the dispatcher's ends close when it notices


def test_inputs_known_to_fit_are_told_from_others(server: Any) -> None:
    with Client(server.address) as client:
        for _ in range(3):  # from the second time on the client knows this type and shape
            for array in (x(1), x(2, rows=3), np.asfortranarray(x(3, rows=2)), x(4).astype(">f4")):
                np.testing.assert_array_equal(
                    client.infer({"x": array})["y"], np.asarray(array, np.float32) * 2
                )
                np.testing.assert_array_equal(
                    client.submit(array).result(10)["y"], np.asarray(array, np.float32) * 2
                )
            for wrong in (x().astype(np.float64), np.zeros(4, np.float32)):
                with pytest.raises(errors.WrongInput):
                    client.infer(wrong)
            with pytest.raises(errors.WrongInput):
                client.infer({"z": x()})
            np.testing.assert_array_equal(client.infer(x(5), outputs=["y"])["y"], x(10))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads: the child touches none
def test_ids_are_never_the_same() -> None:
    from defer.client_room import IDS, new_id

    assert len({new_id() for _ in range(3 * IDS)}) == 3 * IDS
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"".join(new_id() for _ in range(8)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 4096)
    os.close(read)
    os.close(write)
    assert not {new_id() for _ in range(IDS)} & {theirs[at : at + 16] for at in range(0, len(theirs), 16)}


def test_text_takes_other_bytes_each_time_and_is_never_known_to_fit() -> None:
    info = api.ModelInfo("m", "ready", inputs=(TensorSpec("t", "string", (2,)),))
    for array in (np.array(["ab", "cde"]), np.array([b"ab", b"c"]), np.array(["a", "b"], object)):
        assert plain({"t": array}, info) is None
        assert plain(array, info) is None
    assert plain(np.zeros(2, np.float32), info) is not None
