"""Writes down the surface of NVIDIA's real Python bindings, so that our calls can be checked where they are absent.

    python generate.py tensorrt PATH/tensorrt_bindings/tensorrt.so > tensorrt-11.4.0.106.json
    python generate.py cuda > cuda-bindings-13.5.0.json        (with cuda-bindings on the path)

TensorRT's extension module needs libnvinfer and its parser only to run, not to say what it has: this links it to
empty libraries of the same names (which takes a C compiler), imports it, and reads every member's docstring.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "ILogger.Severity",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
)

SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

FUNCTIONS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease",
    "cuCtxSetCurrent",
    "cuMemGetInfo",
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostGetDevicePointer",
    "cuStreamCreate",
    "cuStreamDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy",
    "cuStreamWaitEvent",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuGetErrorString",
)
CONSTANTS = (
    "CU_MEMHOSTALLOC_PORTABLE",
    "CU_MEMHOSTALLOC_DEVICEMAP",
    "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
    "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
    "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED",
    "CUevent_flags.CU_EVENT_BLOCKING_SYNC",
    "CUevent_flags.CU_EVENT_DISABLE_TIMING",
    "CUstream_flags.CU_STREAM_NON_BLOCKING",
)


def load_tensorrt(extension: Path):
    """The real extension module on top of empty libraries. Nothing in it may be called."""
    major = re.search(rb"libnvinfer\.so\.(\d+)", extension.read_bytes()).group(1).decode()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            name = f"lib{library}.so.{major}"
            target = Path(folder, name)
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(target), str(source)], check=True
            )
            ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
        loader = ExtensionFileLoader("tensorrt", str(extension))
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_file_location("tensorrt", extension, loader=loader)
        )
        loader.exec_module(module)
    return module


def tensorrt_surface(module) -> dict[str, object]:
    members: dict[str, list[str] | str] = {}
    for name in CLASSES:
        owner = module
        for part in name.split("."):
            owner = getattr(owner, part)
        members[name] = "class"
        for member in sorted(dir(owner)):
            if member.startswith("_") and member != "__init__":
                continue
            members[f"{name}.{member}"] = describe(owner, member)
    return members


def describe(owner: type, member: str) -> list[str] | str:
    """Every signature of a method; the word for anything else."""
    value = getattr(owner, member)
    if isinstance(value, property):
        return "property"
    if not callable(value):
        return "value"
    lines = (value.__doc__ or "").splitlines()
    pattern = re.compile(rf"^(?:\d+\. )?{re.escape(member)}\((.*)\)(?: -> .*)?$")
    return [
        f"{member}({found[1]})" for line in lines if (found := pattern.match(line)) and "*args" not in line
    ]


def cuda_surface(driver) -> dict[str, object]:
    members: dict[str, object] = {}
    for name in FUNCTIONS:
        members[name] = [(getattr(driver, name).__doc__ or "").splitlines()[0]]
    for name in CONSTANTS:
        value = driver
        for part in name.split("."):
            value = getattr(value, part)
        members[name] = int(value)
    return members


def main() -> None:
    if sys.argv[1] == "tensorrt":
        extension = Path(sys.argv[2])
        info = next(extension.parent.parent.glob("tensorrt_*.dist-info")).name.removesuffix(".dist-info")
        surface = {"distribution": info, "members": tensorrt_surface(load_tensorrt(extension))}
    else:
        from cuda.bindings import driver

        info = f"cuda_bindings-{importlib.metadata.version('cuda-bindings')}"
        surface = {"distribution": info, "members": cuda_surface(driver)}
    json.dump(surface, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
