"""Split an ONNX model over edge boxes, and serve it through a pipeline of agents.

The public names are loaded on first use, so that a client on an edge box pays for the client alone:

    import numpy as np
    import defer

    with defer.Client("127.0.0.1:7600") as client:
        outputs = client.infer({"input": np.zeros((1, 3, 224, 224), np.float32)})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defer.client import AsyncClient, Client
    from defer.errors import DeferError
    from defer.in_process import Dispatcher

__version__: str

__all__ = ["AsyncClient", "Client", "DeferError", "Dispatcher", "__version__", "errors"]

_LAZY = {
    "Client": ("defer.client", "Client"),
    "AsyncClient": ("defer.client", "AsyncClient"),
    "DeferError": ("defer.errors", "DeferError"),
    "Dispatcher": ("defer.in_process", "Dispatcher"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("defer-edge")
        except PackageNotFoundError:  # a source tree on sys.path, never installed
            return "0+source"
    if name == "errors":
        return importlib.import_module("defer.errors")
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'defer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
