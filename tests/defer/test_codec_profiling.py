"""What codecs cost clients is measured beside anything else that the machine does."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

import models
from defer.codec_profiling import NOT_TRIED_S, client_costs
from partitioner import analyze


def test_a_process_that_waits_for_the_processor_finds_the_same_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = analyze(models.save("tiny_residual", tmp_path / "m.onnx"))
    usual = client_costs(chain)
    hours = itertools.count(0.0, 3600.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(hours))
    busy = client_costs(chain)
    tried = {name for name, cost in usual.items() if cost.encode_s[0] < NOT_TRIED_S}
    assert len(tried) > 5
    assert {name for name, cost in busy.items() if cost.encode_s[0] < 60} == tried
