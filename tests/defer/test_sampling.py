"""Which requests are handed out for comparison, and what they are compared with."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.sampling import Sampler, Tally, reference_of
from defer.errors import NotReady
from node_agent.frames import pack_item
from node_agent.messages import NO_DEADLINE, Credit, Infer, Item, Result, TensorHeader, TensorSpec
from tests.defer.plan_fixtures import a_plan

X, Y = TensorHeader("x", "float32", (4,), "raw", 16), TensorHeader("y", "float32", (2,), "raw", 8)


def a_core(every: int) -> DispatcherCore:
    core = DispatcherCore()
    specs = (TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (2,)),)
    core.handle(e.RouteLoaded(e.Route("m", 1, *specs, "L", 2, ("a",), sample_every=every)), 0)
    core.handle(e.RouteReady(1), 0)
    core.handle(e.LinkUp("L"), 0)
    core.handle(e.CreditArrived("L", Credit(100, 1 << 20)), 0)
    return core


def one(core: DispatcherCore, number: int, client: bytes = b"c") -> list[e.Instruction]:
    infer = Infer(number.to_bytes(16), "", NO_DEADLINE, (X,))
    core.handle(e.InferArrived(client, infer, (f"x{number}",)), 0)
    return core.handle(e.ItemReturned(Item(1, number, 2, NO_DEADLINE, (Y,)), (f"y{number}",)), 0)


def test_every_third_result_is_handed_out_with_what_it_answers() -> None:
    core = a_core(3)
    out = [one(core, number) for number in range(1, 10)]
    assert [len(each) for each in out] == [1, 1, 2] * 3
    deliver, sampled = out[5]
    assert isinstance(deliver, e.Deliver)
    assert isinstance(sampled, e.Sampled)
    assert (sampled.epoch, sampled.frames, sampled.outputs) == (1, ("x6",), ("y6",))
    assert sampled.infer.request == (6).to_bytes(16)
    assert sampled.result == deliver.result


def test_our_own_requests_are_never_sampled_and_none_is_without_sampling() -> None:
    core = a_core(1)
    assert len(one(core, 1, client=b"")) == 1
    assert len(one(core, 2)) == 2
    assert all(len(one(a_core(0), number)) == 1 for number in (1,))


def test_the_reference_keeps_lossless_codecs_and_replaces_the_others() -> None:
    plan = a_plan()
    assert reference_of(plan) is None  # raw, lz4, raw
    lossy = msgspec.structs.replace(plan.transfers[0], codec="int8")
    unknown = msgspec.structs.replace(plan.transfers[2], codec="newer")
    reference = reference_of(msgspec.structs.replace(plan, transfers=(lossy, plan.transfers[1], unknown)))
    assert reference is not None
    assert [transfer.codec for transfer in reference.transfers] == ["raw", "lz4", "raw"]


class Shell:
    """Answers canaries with fixed arrays, or not at all."""

    def __init__(self, outputs: dict[str, Any] | None) -> None:
        self.outputs = outputs
        self.asked: list[int] = []

    def canary(self, epoch: int, *_: object) -> Future[Any]:
        self.asked.append(epoch)
        future: Future[Any] = Future()
        if self.outputs is None:
            future.set_exception(NotReady("a device is lost"))
        else:
            future.set_result((*pack_item(self.outputs), 0.1))
        return future


def sampled(epoch: int, outputs: dict[str, Any]) -> e.Sampled:
    headers, frames = pack_item(outputs)
    return e.Sampled(
        epoch, Infer(bytes(16), "", NO_DEADLINE, (X,)), ("x",), Result(bytes(16), headers), frames
    )


def test_deviations_add_up_per_deployment() -> None:
    shell = Shell({"y": np.array([3.0, 4.0], np.float32), "unwanted": np.zeros(3, np.float32)})
    sampler = Sampler(shell)  # type: ignore[arg-type]
    sampler.tallies[1] = Tally(2, "relative")
    for value in (4.0, 4.5):
        sampler.compare(sampled(1, {"y": np.array([3.0, value], np.float32)}))
    sampler.compare(sampled(7, {"y": np.zeros(2, np.float32)}))  # a deployment that is gone
    tally = sampler.tallies[1]
    assert shell.asked == [2, 2]
    assert (tally.compared, tally.failed) == (2, 0)
    np.testing.assert_allclose((tally.worst, tally.mean), (0.1, 0.05), rtol=1e-6)


def test_a_reference_that_does_not_answer_is_counted_and_harms_nothing() -> None:
    sampler = Sampler(Shell(None))  # type: ignore[arg-type]
    sampler.tallies[1] = Tally(2, "relative")
    sampler.compare(sampled(1, {"y": np.zeros(2, np.float32)}))
    assert (sampler.tallies[1].compared, sampler.tallies[1].failed) == (0, 1)
