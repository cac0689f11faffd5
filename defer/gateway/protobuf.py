"""The messages of `inference.GRPCInferenceService`, built at run time from a table of their fields.

Names and numbers are those of the Open Inference Protocol v2 and its extensions, so that its clients' messages are ours.
They live in a pool of their own: a program may hold another implementation of the same protocol beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"

_TENSOR_METADATA = ("1 string name", "2 string datatype", "3 int64* shape")
_PARAMETERS = "map ModelRepositoryParameter parameters"

MESSAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 bool ready",),
    "ModelReadyRequest": ("1 string name", "2 string version"),
    "ModelReadyResponse": ("1 bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("1 string name", "2 string version", "3 string* extensions"),
    "ModelMetadataRequest": ("1 string name", "2 string version"),
    "ModelMetadataResponse.TensorMetadata": _TENSOR_METADATA,
    "ModelMetadataResponse": (
        "1 string name",
        "2 string* versions",
        "3 string platform",
        "4 ModelMetadataResponse.TensorMetadata* inputs",
        "5 ModelMetadataResponse.TensorMetadata* outputs",
    ),
    "InferParameter": (
        "1 bool bool_param |parameter_choice",
        "2 int64 int64_param |parameter_choice",
        "3 string string_param |parameter_choice",
        "4 double double_param |parameter_choice",
        "5 uint64 uint64_param |parameter_choice",
    ),
    "InferTensorContents": (
        "1 bool* bool_contents",
        "2 int32* int_contents",
        "3 int64* int64_contents",
        "4 uint32* uint_contents",
        "5 uint64* uint64_contents",
        "6 float* fp32_contents",
        "7 double* fp64_contents",
        "8 bytes* bytes_contents",
    ),
    "ModelInferRequest.InferInputTensor": (
        "1 string name",
        "2 string datatype",
        "3 int64* shape",
        "4 map InferParameter parameters",
        "5 InferTensorContents contents",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("1 string name", "2 map InferParameter parameters"),
    "ModelInferRequest": (
        "1 string model_name",
        "2 string model_version",
        "3 string id",
        "4 map InferParameter parameters",
        "5 ModelInferRequest.InferInputTensor* inputs",
        "6 ModelInferRequest.InferRequestedOutputTensor* outputs",
        "7 bytes* raw_input_contents",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "1 string name",
        "2 string datatype",
        "3 int64* shape",
        "4 map InferParameter parameters",
        "5 InferTensorContents contents",
    ),
    "ModelInferResponse": (
        "1 string model_name",
        "2 string model_version",
        "3 string id",
        "4 map InferParameter parameters",
        "5 ModelInferResponse.InferOutputTensor* outputs",
        "6 bytes* raw_output_contents",
    ),
    "ModelStreamInferResponse": ("1 string error_message", "2 ModelInferResponse infer_response"),
    "ModelInput": ("1 string name", "2 DataType data_type", "4 int64* dims"),
    "ModelOutput": ("1 string name", "2 DataType data_type", "3 int64* dims"),
    "ModelConfig": (
        "1 string name",
        "2 string platform",
        "4 int32 max_batch_size",
        "5 ModelInput* input",
        "6 ModelOutput* output",
        "17 string backend",
    ),
    "ModelConfigRequest": ("1 string name", "2 string version"),
    "ModelConfigResponse": ("1 ModelConfig config",),
    "StatisticDuration": ("1 uint64 count", "2 uint64 ns"),
    "InferStatistics": (
        "1 StatisticDuration success",
        "2 StatisticDuration fail",
        "3 StatisticDuration queue",
        "4 StatisticDuration compute_input",
        "5 StatisticDuration compute_infer",
        "6 StatisticDuration compute_output",
        "7 StatisticDuration cache_hit",
        "8 StatisticDuration cache_miss",
    ),
    "InferBatchStatistics": (
        "1 uint64 batch_size",
        "2 StatisticDuration compute_input",
        "3 StatisticDuration compute_infer",
        "4 StatisticDuration compute_output",
    ),
    "ModelStatistics": (
        "1 string name",
        "2 string version",
        "3 uint64 last_inference",
        "4 uint64 inference_count",
        "5 uint64 execution_count",
        "6 InferStatistics inference_stats",
        "7 InferBatchStatistics* batch_stats",
    ),
    "ModelStatisticsRequest": ("1 string name", "2 string version"),
    "ModelStatisticsResponse": ("1 ModelStatistics* model_stats",),
    "ModelRepositoryParameter": (
        "1 bool bool_param |parameter_choice",
        "2 int64 int64_param |parameter_choice",
        "3 string string_param |parameter_choice",
        "4 bytes bytes_param |parameter_choice",
    ),
    "RepositoryIndexRequest": ("1 string repository_name", "2 bool ready"),
    "RepositoryIndexResponse.ModelIndex": (
        "1 string name",
        "2 string version",
        "3 string state",
        "4 string reason",
    ),
    "RepositoryIndexResponse": ("1 RepositoryIndexResponse.ModelIndex* models",),
    "RepositoryModelLoadRequest": ("1 string repository_name", "2 string model_name", f"3 {_PARAMETERS}"),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": ("1 string repository_name", "2 string model_name", f"3 {_PARAMETERS}"),
    "RepositoryModelUnloadResponse": (),
}
"""Every message: `number type name`, `*` for repeated, `map` for one by names, `|` for a field of a choice."""

DATA_TYPES: Final = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)
"""The data types of a model's configuration, in the order of their numbers."""

METHODS: Final = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)
"""The methods with one request and one answer; each takes `…Request` and gives `…Response`."""

_Field = descriptor_pb2.FieldDescriptorProto


@cache
def message(name: str) -> Any:
    """The class of a message, by its name without the package."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="defer/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES):
        types.value.add(name=f"TYPE_{name}", number=number)
    made: dict[str, Any] = {}
    for full in sorted(MESSAGES, key=lambda name: name.count(".")):
        outer, _, inner = full.rpartition(".")
        made[full] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=full)
    for full, fields in MESSAGES.items():
        for text in fields:
            _add_field(made[full], full, text)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(holder: Any, full: str, text: str) -> None:
    number, kind, rest = text.split(" ", 2)
    name, _, choice = rest.partition(" |")
    field = holder.field.add(number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind == "map":
        kind, name = name.split(" ")
        entry = holder.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
        _set_type(value, kind)
        kind = f"{full}.{entry.name}*"
    field.name = name
    if kind.endswith("*"):
        field.label = _Field.LABEL_REPEATED
    _set_type(field, kind.rstrip("*"))
    if choice:
        if not holder.oneof_decl:
            holder.oneof_decl.add(name=choice)
        field.oneof_index = 0


def _set_type(field: Any, kind: str) -> None:
    if kind == "DataType":
        field.type, field.type_name = _Field.TYPE_ENUM, f".{PACKAGE}.DataType"
    elif kind[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
