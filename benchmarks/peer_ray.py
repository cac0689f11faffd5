"""ONNX models in Ray Serve over HTTP with the binary extension, run in an environment of its own.

python peer_ray.py PORT MODELS
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray  # type: ignore[import-not-found,unused-ignore]
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(  # type: ignore[untyped-decorator,unused-ignore]
    num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 1}
)
class Onnx:
    """Runs the models of a folder, each by its file's name."""

    def __init__(self, models: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as our agent: there is one core
        self._sessions = {
            file.stem: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in Path(models).glob("*.onnx")
        }

    async def __call__(self, request: Request) -> Response:
        """`POST /v2/models/M/infer`."""
        body = await request.body()
        length = int(request.headers["inference-header-content-length"])
        asked = json.loads(body[:length])
        inputs, at = {}, length
        for tensor in asked["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            inputs[tensor["name"]] = np.frombuffer(body, np.float32, size // 4, at).reshape(tensor["shape"])
            at += size
        model = request.url.path.split("/")[3]
        session = self._sessions[model]
        arrays = session.run(None, inputs)
        outputs = [
            {
                "name": output.name,
                "datatype": "FP32",
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for output, array in zip(session.get_outputs(), arrays, strict=True)
        ]
        head = json.dumps({"model_name": model, "model_version": "1", "outputs": outputs}).encode()
        return Response(
            b"".join([head, *(array.data for array in arrays)]),
            media_type="application/octet-stream",
            headers={"Inference-Header-Content-Length": str(len(head))},
        )


def main(port: int, models: str) -> None:
    """Serves until it is told to end."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment: Any = Onnx
    serve.run(deployment.options(logging_config={"enable_access_log": False}).bind(models), route_prefix="/")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
