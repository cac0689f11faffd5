"""Who must not get in is refused at every port of real processes with keys, and told of once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hostile.strangers import PATIENCE_S, guarded, refusals


@pytest.mark.integration
def test_strangers_and_a_replayed_handshake_are_refused_and_logged_once(tmp_path: Path) -> None:
    with guarded(tmp_path) as cluster:
        found = refusals(cluster, times=3)
        logs = {cluster.log(port).read_text() for port in cluster.ports}
    assert {each.port for each in found} == set(cluster.ports)
    assert {each.stranger for each in found if each.port == "agent control"} == {
        "a key that nobody knows",
        "a role that may not",
        "another key expected",
        "a replayed handshake",
        "no keys",
    }
    assert all(each.slowest_s < PATIENCE_S for each in found)  # how soon is the benchmark's to judge
    assert all(each.lines <= 1 for each in found), found
    for log in logs:
        assert log.count("its key is not authorised") >= 1
        assert log.count("broke off") >= 1
