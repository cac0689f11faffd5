"""Which tensors of an item are run, passed on and refused."""

from __future__ import annotations

import pytest

from node_agent import messages as m
from node_agent.errors import WrongInputError
from node_agent.flow import Window
from node_agent.routing import Route, RoutingTable
from tests.node_agent.harness import spec


def header(name: str, *shape: int, dtype: str = "float32") -> m.TensorHeader:
    return m.TensorHeader(name, dtype, shape, "raw", 4)


ROUTE = Route(
    1,
    "model",
    m.HopSpec(
        2,
        m.PeerRef("p"),
        m.PeerRef("n"),
        graph=m.FileRef("a" * 64, 1),
        inputs=(spec("x", "n", 4), spec("ids", 3, dtype="int64")),
        outputs=(spec("y", "n"), spec("b", 1, dtype="bfloat16")),
        send=("y", "x", "skip"),
    ),
)


def test_inputs_are_decoded_and_what_is_needed_later_is_passed() -> None:
    headers = [header("skip", 9), header("other", 1), header("ids", 3, dtype="int64"), header("x", 7, 4)]
    assert ROUTE.admit(headers) == ([2, 3], [0, 3])
    assert (ROUTE.kind, ROUTE.key, ROUTE.bits) == ("run", (1, 2), {"b": "bfloat16"})


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ([header("x", 1, 4), header("ids", 3, dtype="int64")], "lacks 'skip'"),
        ([header("skip", 1), header("ids", 3, dtype="int64")], "lacks 'x'"),
        ([], "no tensor"),
        ([header("x", 1, 5)], r"takes float32\['n', 4\]"),
        ([header("x", 4)], r"is float32\[4\]"),
        ([header("ids", 3)], "takes int64"),
    ],
)
def test_wrong_tensors_are_named(headers: list[m.TensorHeader], complaint: str) -> None:
    with pytest.raises(WrongInputError, match=complaint):
        ROUTE.admit(headers)


def test_tables_change_as_a_whole() -> None:
    relay = Route(3, "model", m.HopSpec(0, m.PeerRef("a"), m.PeerRef("b", "tcp://b:1")))
    empty = RoutingTable()
    both = empty.with_routes([ROUTE, relay])
    assert (both.routes, empty.routes) == ({(1, 2): ROUTE, (3, 0): relay}, {})
    assert both.peers("next") == {m.PeerRef("n"), m.PeerRef("b", "tcp://b:1")}
    assert both.without_epoch(1).routes == {(3, 0): relay}
    assert relay.kind == "relay"


def test_peers_may_have_under_way_what_all_their_routes_ask_for() -> None:
    def route(epoch: int, peer: str, credit: int) -> Route:
        return Route(epoch, "m", m.HopSpec(0, m.PeerRef(peer), m.PeerRef("n"), credit=credit))

    table = RoutingTable().with_routes([route(1, "p", 4), route(2, "p", 3), route(3, "q", 0)])
    default = Window(32, 1000)
    assert table.windows(default) == {"p": Window(7, 1000), "q": default}
    assert table.without_epoch(1).windows(default)["p"].items == 3
