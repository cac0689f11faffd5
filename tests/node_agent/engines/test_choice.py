"""Which engine is taken, and what is said about the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.engines.base import Partition
from node_agent.engines.choice import ChosenSession, Fastest, Trial, WithFallback, choose, relative_error
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.errors import EngineMissingError, LoadFailedError, RunFailedError
from node_agent.messages import EngineInfo


def test_the_fastest_that_is_right_is_taken():
    choice = choose([Trial("gpu", 0.002, 0.001), Trial("cpu", 0.01), Trial("other", 0.003, 0.0)])
    assert choice.engine == "gpu"
    assert choice.reasons == ("cpu is slower: 10 ms to 2 ms", "other is slower: 3 ms to 2 ms")


def test_a_fast_engine_that_is_wrong_is_not_taken():
    choice = choose([Trial("gpu", 0.001, 0.3), Trial("cpu", 0.01)])
    assert choice.engine == "cpu"
    assert choice.reasons == ("gpu is wrong: it differs by 0.3 from the CPU, 0.02 is allowed",)


def test_an_engine_that_failed_is_named_with_its_reason():
    choice = choose([Trial("gpu", failure="no driver."), Trial("cpu", 0.01)])
    assert choice.engine == "cpu"
    assert choice.reasons == ("gpu failed: no driver.",)


def test_none_ran():
    assert choose([Trial("gpu", failure="x"), Trial("cpu", failure="y")]) is None
    assert choose([]) is None


@given(
    st.lists(
        st.builds(
            Trial,
            engine=st.uuids().map(str),
            seconds=st.one_of(st.none(), st.floats(1e-6, 10)),
            error=st.one_of(st.none(), st.floats(0, 1)),
            failure=st.just("f"),
        ),
        max_size=6,
        unique_by=lambda trial: trial.engine,
    )
)
def test_choice_is_right_fastest_and_explains_the_rest(trials):
    good = [t for t in trials if t.seconds is not None and (t.error is None or t.error <= 0.02)]
    choice = choose(trials)
    if not good:
        assert choice is None
        return
    taken = next(t for t in trials if t.engine == choice.engine)
    assert taken in good
    assert taken.seconds == min(t.seconds for t in good)
    others = [t.engine for t in trials if t is not taken]
    assert [reason.split(" ")[0] for reason in choice.reasons] == others


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([5.0, 1.0], [np.inf, 1.0], 0.0),
        ([0.0], [0.0], 0.0),
        ([1e-3], [0.0], np.inf),
        ([1.0, 2.0, 3.0], [1.0, 2.0], np.inf),
    ],
)
def test_relative_error(got, expected, error):
    assert relative_error(np.array(got), np.array(expected)) == pytest.approx(error)


def test_relative_error_of_integers_is_the_share_that_differs():
    assert relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert relative_error(np.array([], np.int64), np.array([], np.int64)) == 0.0


class Planned:
    """An engine whose sessions do what a test plans."""

    def __init__(self, name: str, *, factor=1.0, delay=0.0, missing="", load=None, run=None) -> None:
        self.name, self._factor, self._delay = name, factor, delay
        self._missing, self._load, self._run = missing, load, run
        self.open = 0
        self.options: dict[str, str] = {}

    def info(self):
        return EngineInfo(self.name, "1", missing=self._missing)

    def load(self, partition: Partition):
        self.options = dict(partition.options)
        if self._load is not None:
            raise self._load
        inner = OnnxRuntimeCpu().load(replace(partition, options={}))
        outer = self
        outer.open += 1

        class Session:
            outputs = inner.outputs

            def run(self, inputs):
                if outer._run is not None:
                    raise outer._run
                import time

                time.sleep(outer._delay)
                return {name: array * np.float32(outer._factor) for name, array in inner.run(inputs).items()}

            def close(self):
                outer.open -= 1
                inner.close()

        return Session()


def fastest(*engines: Planned) -> Fastest:
    return Fastest({engine.name: engine for engine in engines}, "cpu")


def test_the_session_says_what_it_runs_on_and_the_losers_are_closed(partition):
    gpu, slow, cpu = Planned("gpu"), Planned("slow", delay=0.02), Planned("cpu", delay=0.01)
    session = fastest(gpu, slow, cpu).load(partition)
    assert session.engine == "gpu"
    assert [note.split(" ")[0] for note in session.notes] == ["slow", "cpu"]
    assert (gpu.open, slow.open, cpu.open) == (1, 0, 0)
    session.close()
    assert gpu.open == 0


def test_wrong_results_cost_an_engine_its_place(partition):
    session = fastest(Planned("gpu", factor=1.5), Planned("cpu", delay=0.01)).load(partition)
    assert session.engine == "cpu"
    assert "gpu is wrong" in session.notes[0]
    session.close()


def test_failures_at_load_and_at_run_are_reasons_and_not_crashes(partition):
    engines = (
        Planned("a", load=LoadFailedError("op Mystery is unknown.")),
        Planned("b", run=RunFailedError("the device fell off.")),
        Planned("cpu"),
    )
    session = fastest(*engines).load(partition)
    assert session.engine == "cpu"
    assert session.notes == ("a failed: op Mystery is unknown.", "b failed: the device fell off.")
    session.close()
    assert all(engine.open == 0 for engine in engines)


def test_an_engine_alone_is_taken_without_a_trial(partition):
    cpu = Planned("cpu", run=RunFailedError("a trial would fail"))
    session = fastest(Planned("gpu", missing="no driver"), cpu).load(partition)
    assert session.engine == "cpu"
    session.close()


def test_nothing_runs(partition):
    both = Planned("gpu", load=LoadFailedError("x.")), Planned("cpu", load=LoadFailedError("y."))
    with pytest.raises(LoadFailedError, match=r"gpu: x\. cpu: y\."):
        fastest(*both).load(partition)


def test_fallback_takes_the_cpu_and_says_why(partition):
    gpu = Planned("gpu", load=EngineMissingError("libcublas.so.13 is absent.", hint="Install CUDA."))
    session = WithFallback("gpu", gpu, "cpu", Planned("cpu")).load(replace(partition, options={"slots": "4"}))
    assert isinstance(session, ChosenSession)
    assert session.engine == "cpu"
    assert session.notes == ("gpu failed: libcublas.so.13 is absent. Install CUDA.",)
    session.close()
    assert gpu.options == {"slots": "4"}


def test_what_a_vendors_library_raises_is_a_reason_too(partition):
    odd = TypeError("pybind11::init(): factory function returned nullptr")
    session = WithFallback("gpu", Planned("gpu", load=odd), "cpu", Planned("cpu")).load(partition)
    assert session.notes == ("gpu failed: TypeError: pybind11::init(): factory function returned nullptr",)
    session.close()
    session = fastest(Planned("gpu", run=odd), Planned("cpu")).load(partition)
    assert (session.engine, len(session.notes)) == ("cpu", 1)
    session.close()


def test_fallback_can_be_forbidden(partition):
    gpu = Planned("gpu", load=LoadFailedError("no."))
    with pytest.raises(LoadFailedError, match="no"):
        WithFallback("gpu", gpu, "cpu", Planned("cpu")).load(replace(partition, options={"fallback": "no"}))


def test_fallback_is_yes_or_no(partition):
    for said in ("maybe", "", "No"):
        with pytest.raises(LoadFailedError, match=f"fallback={said} is neither yes nor no") as caught:
            WithFallback("gpu", Planned("gpu"), "cpu", Planned("cpu")).load(
                replace(partition, options={"fallback": said})
            )
        assert "fallback=yes" in caught.value.hint


def test_no_fallback_is_needed(partition):
    session = WithFallback("gpu", Planned("gpu"), "cpu", Planned("cpu")).load(partition)
    assert (session.engine, session.notes) == ("gpu", ())
    session.close()
