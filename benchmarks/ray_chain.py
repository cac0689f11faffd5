"""A chain of composed Ray Serve deployments that hand an array on; runs in an environment of its own, prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import median
from typing import Any

import numpy as np
import ray  # type: ignore[import-not-found,unused-ignore]
from ray import serve


class Stage:
    """Hands its input to the next stage, if there is one."""

    def __init__(self, following: Any = None) -> None:
        self._following = following

    async def __call__(self, array: Any) -> Any:
        """The array, through all that follows."""
        return array if self._following is None else await self._following.remote(array)


async def _windowed(handle: Any, array: Any, count: int, window: int) -> float:
    room = asyncio.Semaphore(window)

    async def one() -> None:
        async with room:
            await handle.remote(array)

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - begin)


def main(nbytes: int, stages: int, window: int) -> None:
    """Measures and prints p50 in seconds and requests per second."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    deployment = serve.deployment(Stage, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
    application = deployment.options(name="stage-0").bind()
    for number in range(1, stages):
        application = deployment.options(name=f"stage-{number}").bind(application)
    handle = serve.run(application)
    array = np.random.default_rng(0).standard_normal((1, nbytes // 4)).astype(np.float32)
    for _ in range(30):
        handle.remote(array).result()
    seconds = []
    for _ in range(200):
        begin = time.perf_counter()
        handle.remote(array).result()
        seconds.append(time.perf_counter() - begin)
    rate = asyncio.run(_windowed(handle, array, 400, window))
    serve.shutdown()
    ray.shutdown()
    sys.stdout.write(json.dumps({"p50": median(seconds), "rate": rate}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
