"""Orders are topological, scored as a brute-force oracle says, and never worse than the one given."""

from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.ordering import OpGraph, alive_bytes, best_order


@st.composite
def op_graphs(draw):
    count = draw(st.integers(1, 14))
    given_tensors = draw(st.integers(1, 3))
    reads, writes, after, sizes, producer = [], [], [], [], {}
    sizes = draw(st.lists(st.integers(1, 50), min_size=given_tensors, max_size=given_tensors))
    for op in range(count):
        picked = draw(st.sets(st.integers(0, len(sizes) - 1), max_size=3))
        made = draw(st.integers(1, 2))
        reads.append(sorted(picked))
        writes.append(list(range(len(sizes), len(sizes) + made)))
        after.append(sorted({producer[tensor] for tensor in picked if tensor in producer}))
        for tensor in writes[-1]:
            producer[tensor] = op
        sizes += draw(st.lists(st.integers(1, 50), min_size=made, max_size=made))
    kept = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    counted = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return OpGraph(after, reads, writes, sizes, kept, counted, range(given_tensors))


def oracle(graph, order):
    place = {op: i for i, op in enumerate(order)}
    made = {t: place[op] for op in order for t in graph.writes[op]}
    total = 0
    for i, op in enumerate(order):
        if not graph.counted[op]:
            continue
        for tensor, size in enumerate(graph.sizes):
            exists = made.get(tensor, -1) <= i
            uses = [place[o] for o in order if tensor in graph.reads[o]]
            total += size * (exists and (graph.kept[tensor] or any(use > i for use in uses)))
    return total


@settings(max_examples=200, deadline=None)
@given(op_graphs())
def test_best_order(graph):
    order = best_order(graph)
    assert sorted(order) == list(range(len(graph.after)))
    place = {op: i for i, op in enumerate(order)}
    assert all(place[before] < place[op] for op in order for before in graph.after[op])
    assert alive_bytes(graph, order) == oracle(graph, order)
    assert alive_bytes(graph, order) <= alive_bytes(graph, range(len(graph.after)))
    assert best_order(graph) == order


def test_finishes_one_branch_before_the_next():
    """Two heads begun together and ended one after the other: the given order keeps both alive."""
    # tensors: 0 input, 1-2 wide heads, 3-4 narrow ends
    graph = OpGraph(
        after=[[], [], [0], [1]],
        reads=[[0], [0], [1], [2]],
        writes=[[1], [2], [3], [4]],
        sizes=[10, 100, 100, 1, 1],
        kept=[False, False, False, True, True],
        counted=[True] * 4,
        given=[0],
    )
    assert best_order(graph) in ([0, 2, 1, 3], [1, 3, 0, 2])


def test_keeps_the_given_order_where_nothing_is_gained():
    graph = OpGraph(
        [[], [0], [1]], [[0], [1], [2]], [[1], [2], [3]], [5] * 4, [False] * 3 + [True], [True] * 3, [0]
    )
    assert best_order(graph) == [0, 1, 2]
