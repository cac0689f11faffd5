"""ONNX models in MLServer, run in an environment of its own: its gRPC as it is, and HTTP with the binary extension.

MLServer's HTTP endpoint takes tensors as JSON only. So that all servers are asked in the same encoding, the runtime
adds an endpoint of its own, as MLServer offers (`custom_handler`): it reads the binary extension and runs in the
worker, where `predict` runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import Body, Header  # type: ignore[import-not-found,unused-ignore]
from fastapi.responses import Response  # type: ignore[import-not-found,unused-ignore]
from mlserver import MLModel, types  # type: ignore[import-not-found,unused-ignore]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found,unused-ignore]
from mlserver.handlers import custom_handler  # type: ignore[import-not-found,unused-ignore]

BINARY = Body(media_type="application/octet-stream")
LENGTH = Header(alias="inference-header-content-length")


class Onnx(MLModel):  # type: ignore[misc,unused-ignore]
    """Runs the models of the folder $MODELS, each by its file's name."""

    async def load(self) -> bool:
        """Loads them all."""
        files = Path(os.environ["MODELS"]).glob("*.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as our agent: there is one core
        self._sessions = {
            file.stem: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in files
        }
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """MLServer's own way in."""
        inputs = {given.name: NumpyCodec.decode_input(given) for given in payload.inputs}
        session = self._sessions[self.name]
        outputs = zip(session.get_outputs(), session.run(None, inputs), strict=True)
        return types.InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(output.name, array) for output, array in outputs],
        )

    @custom_handler(rest_path="/binary/{model}/infer")  # type: ignore[untyped-decorator,unused-ignore]
    async def binary(self, model: str, body: bytes = BINARY, length: int = LENGTH) -> Response:
        """The same with the binary extension."""
        asked = json.loads(body[:length])
        inputs, at = {}, length
        for tensor in asked["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            inputs[tensor["name"]] = np.frombuffer(body, np.float32, size // 4, at).reshape(tensor["shape"])
            at += size
        session = self._sessions[model]
        return answer(model, [output.name for output in session.get_outputs()], session.run(None, inputs))


def answer(model: str, names: list[str], arrays: list[Any]) -> Response:
    """A response of the protocol with its tensors in binary form."""
    outputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in zip(names, arrays, strict=True)
    ]
    head = json.dumps({"model_name": model, "model_version": "1", "outputs": outputs}).encode()
    return Response(
        b"".join([head, *(array.data for array in arrays)]),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
