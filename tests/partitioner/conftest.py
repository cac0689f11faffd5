"""What the tests of this room share: running models, whole and in parts, and building small ones."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import partitioner
from partitioner import BlockChain, Partition

onnxruntime.set_default_logger_severity(3)

Feeds = Mapping[str, np.ndarray]


def open_session(model: onnx.ModelProto | Path | str | bytes, *, optimised: bool = False):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    source = str(source) if isinstance(source, Path) else source
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session, feeds: Feeds) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    assert wanted <= set(feeds), f"{wanted - set(feeds)} not at hand"
    return dict(zip(names, session.run(names, {name: feeds[name] for name in wanted}), strict=True))


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that also hands out the named tensors, as far as the top graph knows them."""
    made = {output for node in model.graph.node for output in node.output}
    have = {output.name for output in model.graph.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # An initializer that may be overridden is a constant here. ONNX Runtime packs constants, and its packed
    # kernels round differently, so that the reference has to have them as constants too.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]
    if model.ir_version >= 4 and len(inputs) < len(model.graph.input):
        del copy.graph.input[:]
        copy.graph.input.extend(inputs)
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n in made and n not in have)
    return copy


@dataclass
class Whole:
    """A whole model run once, with every tensor that crosses any boundary."""

    chain: BlockChain
    feeds: Feeds
    values: dict[str, np.ndarray]
    outputs: tuple[str, ...]


def run_whole(
    model: onnx.ModelProto,
    chain: BlockChain,
    feeds: Feeds,
    *,
    optimised: bool = False,
    source: Path | None = None,
) -> Whole:
    names = dict.fromkeys(name for boundary in chain.boundaries for name in boundary.tensors)
    names = [name for name in names if name not in feeds]
    if source is None:
        values = run(open_session(with_outputs(model, names), optimised=optimised), feeds)
    else:  # weights in external files need a path
        beside = source.with_name("whole_with_outputs.onnx")
        beside.write_bytes(with_outputs(model, names).SerializeToString())
        values = run(open_session(beside, optimised=optimised), feeds)
    return Whole(chain, feeds, {**values, **feeds}, tuple(spec.name for spec in chain.outputs))


def equal(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if got.dtype == np.float16:
        tolerance = max(tolerance, 4e-3)
    if not tolerance or got.dtype.kind not in "fc":
        return got.tobytes() == expected.tobytes()
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max(initial=0)))
    return bool(np.allclose(got, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def fits(shape: tuple[int | str, ...], array: np.ndarray, sizes: dict[str, int]) -> bool:
    """Whether an array has a declared shape, a name standing for one number throughout."""
    if len(shape) != array.ndim:
        return False
    return all(
        dim == size if isinstance(dim, int) else sizes.setdefault(dim, size) == size
        for dim, size in zip(shape, array.shape, strict=True)
    )


def run_parts(
    parts: Sequence[Partition],
    whole: Whole,
    *,
    tolerance: float = 0.0,
    optimised: bool = False,
    folder: Path | None,
) -> dict[str, np.ndarray]:
    """Run partitions one after the other, comparing everything they hand on with the whole model."""
    values = dict(whole.feeds)
    sizes: dict[str, int] = {}
    for part in parts:
        if folder is None:
            session = open_session(onnx_bytes(part), optimised=optimised)
        else:
            stored = partitioner.write_store(part, folder)
            session = open_session(folder / f"{stored.graph.sha256}.onnx", optimised=optimised)
        assert [value.name for value in session.get_inputs()] == [spec.name for spec in part.inputs]
        assert [value.name for value in session.get_outputs()] == [spec.name for spec in part.outputs]
        made = run(session, values)
        for spec in (*part.inputs, *part.outputs):
            array = made[spec.name] if spec.name in made else values[spec.name]
            assert str(array.dtype) == spec.dtype or spec.dtype == "string", spec
            assert spec.shape == ("*",) or fits(spec.shape, array, sizes), (spec, array.shape, sizes)
        for name, array in made.items():
            if name in whole.values:
                assert equal(array, whole.values[name], tolerance), f"{name} differs"
        assert not set(made) & set(values), "made twice"
        values |= made
    return values


def onnx_bytes(part: Partition) -> bytes:
    import onnx_ir as ir

    for value in part.model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(
                value.const_value.numpy().copy(), dtype=value.const_value.dtype, name=value.name
            )
    return ir.to_proto(part.model).SerializeToString()


def check_chained(*args, **options) -> BlockChain:
    return prove(*args, **options).chain


def prove(
    model: onnx.ModelProto | Path,
    feeds: Feeds,
    *,
    counts: Sequence[int] = tuple(range(1, 9)),
    every: bool = True,
    tolerance: float = 0.0,
    optimised: bool = False,
    folder: Path | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Whole:
    """The proof: balanced into each count of parts, and cut everywhere, chained equals whole.

    Args:
        model: a model in memory, or the path of one.
    """
    shapes = input_shapes or {name: array.shape for name, array in feeds.items() if array.size}
    chain = partitioner.analyze(model, shapes)
    source = model if isinstance(model, Path) else None
    proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    whole = run_whole(proto, chain, feeds, optimised=optimised, source=source)
    plans = [partitioner.balance(chain, k) for k in counts if k <= len(chain.blocks)]
    if every:
        plans.append(chain.positions)
    for positions in dict.fromkeys(plans):
        parts = partitioner.split(model, positions)
        assert [part.start for part in parts] == [0, *positions]
        values = run_parts(parts, whole, tolerance=tolerance, optimised=optimised, folder=folder)
        for name in whole.outputs:
            if name in values:
                assert equal(values[name], whole.values[name], tolerance), f"{name} differs"
        assert set(whole.outputs) <= set(values)
    return whole


@dataclass
class Builder:
    """Writes down a graph line by line."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    seed: int = 0

    def input(
        self, name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT
    ) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(
        self, name: str, shape: Sequence[int | str] | None = None, dtype: int = TensorProto.FLOAT
    ) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, name: str, array: np.ndarray | Sequence[int] | tuple[int, ...]) -> str:
        """An initializer; a tuple is the shape of a seeded normal one."""
        if isinstance(array, tuple):
            self.seed += 1
            scale = np.float32(1 / np.sqrt(array[0]))
            array = np.random.default_rng(self.seed).normal(size=array).astype(np.float32) * scale
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | Sequence[str], **attributes) -> str:
        names = [out] if isinstance(out, str) else list(out)
        domain = attributes.pop("domain", "")
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=f"n_{names[0]}", domain=domain, **attributes)
        )
        return names[0]

    def model(self, opset: int = 17, ir_version: int = 9, **domains: int) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "tiny", self.inputs, self.outputs, self.weights)
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(name.replace("_", "."), version) for name, version in domains.items()]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=ir_version, functions=self.functions
        )


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def chained() -> Callable[..., BlockChain]:
    return check_chained


@pytest.fixture
def session() -> Callable[..., onnxruntime.InferenceSession]:
    return open_session


@pytest.fixture
def harness():
    """All of the above for tests that need the pieces."""
    from types import SimpleNamespace

    return SimpleNamespace(
        Builder=Builder,
        check_chained=check_chained,
        equal=equal,
        load_without_data=lambda path: onnx.load(path, load_external_data=False),
        open_session=open_session,
        onnx_bytes=onnx_bytes,
        prove=prove,
        run=run,
        run_parts=run_parts,
        run_whole=run_whole,
        with_outputs=with_outputs,
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    return normal


@pytest.fixture
def no_large_files():
    """The system refuses files above 50 kB, as it would on a full disk; a context manager."""

    @contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def scratch(tmp_path):
    """A folder for files too large to be kept until the next runs, as pytest does."""
    yield tmp_path
    shutil.rmtree(tmp_path)
