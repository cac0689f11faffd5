"""A small model, cluster, profile and plan that tests of documents, planning and drawing share."""

from defer.documents import (
    BlocksDocument,
    Cluster,
    CodecProfile,
    CostProfile,
    Created,
    DeviceProfile,
    LinkProfile,
    Plan,
    PlanAlternative,
    PlanStage,
    PlanTerm,
    PlanTransfer,
    loads_cluster,
)
from partitioner import Block, BlockChain, Boundary, TensorSpec

CLUSTER_TOML = """
version = 1

[dispatcher]
device = "desk"

[[device]]
name = "jetson"
address = "127.0.0.1:7610"
memory = "4 GiB"
speed = "200 GFLOP/s"

[[device]]
name = "nano"
address = "127.0.0.1:7620"
memory = "2 GiB"
speed = "50 GFLOP/s"

[[device]]
name = "desk"
computes = false

[[link]]
between = ["jetson", "nano"]
bandwidth = "100 Mbit/s"
delay = "2 ms"
"""


def a_cluster(text: str = CLUSTER_TOML) -> Cluster:
    return loads_cluster(text)


def a_chain(
    flops: tuple[int, ...] = (1_000_000_000, 2_000_000_000, 3_000_000_000),
    nbytes: tuple[int, ...] = (1_000_000, 500_000, 250_000, 4_000),
    ops: tuple[int, ...] = (0, 3, 5, 9),
    weight_bytes: int = 1_000_000,
) -> BlockChain:
    """Three blocks; the weight `w.shared` is read by the first and the last."""
    count = len(flops)
    weights = [(f"w{i}", "w.shared") if i in (0, count - 1) else (f"w{i}",) for i in range(count)]
    sizes = {f"w{i}": weight_bytes for i in range(count)} | {"w.shared": 10_000}
    blocks = tuple(
        Block(
            start=ops[i],
            stop=ops[i + 1],
            name=f"block{i}",
            op_types=("Conv",) * (ops[i + 1] - ops[i]),
            flops=flops[i],
            weights=weights[i],
            weight_bytes=sum(sizes[name] for name in weights[i]),
            activation_bytes=2 * max(nbytes[i], nbytes[i + 1]),
        )
        for i in range(count)
    )
    names = ["input", *(f"t{i}" for i in range(1, count)), "output"]
    specs = {name: TensorSpec(name, "float32", ("batch", 8)) for name in names}
    return BlockChain(
        model="small",
        digest="ab" * 32,
        inputs=(specs["input"],),
        outputs=(specs["output"],),
        blocks=blocks,
        boundaries=tuple(Boundary(ops[i], (names[i],), nbytes[i]) for i in range(count + 1)),
        tensors=specs,
        tensor_bytes=dict(zip(names, nbytes, strict=True)),
        bindings={"batch": 1},
        weight_sizes=sizes,
        weight_bytes=sum(sizes.values()),
    )


def a_blocks_document() -> BlocksDocument:
    return BlocksDocument.from_chain(a_chain())


def a_profile(**devices: DeviceProfile) -> CostProfile:
    return CostProfile(
        model="small",
        digest="ab" * 32,
        positions=(0, 3, 5, 9),
        bindings={"batch": 1},
        devices=devices
        or {"jetson": a_device((0.010, 0.020, 0.030)), "nano": a_device((0.040, 0.080, 0.005))},
        links=(
            LinkProfile.of("desk", "jetson", 12.5e6, 0.001),
            LinkProfile.of("jetson", "desk", 12.5e6, 0.001),
            LinkProfile.of("nano", "desk", 12.5e6, 0.001),
        ),
        codecs={"lz4": (1.0, 2.0, 2.0, 1.0)},
        created=Created(at="2026-01-01T00:00:00Z", by="test", software={"onnxruntime": "1.22"}),
    )


def a_device(
    block_seconds: tuple[float, ...], memory_bytes: int = 0, codec_s: float = 0.001
) -> DeviceProfile:
    count = len(block_seconds)
    return DeviceProfile(
        fingerprint="f",
        engine="onnxruntime",
        method="measured",
        block_seconds=block_seconds,
        block_resident=(2_000_000,) * count,
        stage_overhead_s=0.0005,
        memory_bytes=memory_bytes,
        codecs={"lz4": CodecProfile(encode_s=(codec_s,) * (count + 1), decode_s=(codec_s,) * (count + 1))},
    )


def a_plan() -> Plan:
    return Plan(
        model="small",
        digest="ab" * 32,
        positions=(0, 3, 5, 9),
        bindings={"batch": 1},
        objective="latency",
        method="measured",
        latency_s=0.1,
        period_s=0.05,
        bound=0.1,
        optimal=True,
        bottleneck="device jetson",
        stages=(
            PlanStage(
                device="jetson",
                start=0,
                stop=2,
                ops=(0, 5),
                weight_bytes=2_010_000,
                flops=3_000_000_000,
                seconds=0.03,
            ),
            PlanStage(
                device="nano",
                start=2,
                stop=3,
                ops=(5, 9),
                weight_bytes=1_010_000,
                flops=3_000_000_000,
                seconds=0.02,
            ),
        ),
        transfers=(
            PlanTransfer(
                boundary=0,
                path=("desk", "jetson"),
                codec="raw",
                nbytes=1_000_000,
                seconds=0.01,
                tensors=("input",),
            ),
            PlanTransfer(
                boundary=2,
                path=("jetson", "desk", "nano"),
                codec="lz4",
                nbytes=250_000,
                seconds=0.02,
                tensors=("t2", "skip"),
                wire_bytes=125_000,
            ),
            PlanTransfer(
                boundary=3,
                path=("nano", "desk"),
                codec="raw",
                nbytes=4_000,
                seconds=0.001,
                tensors=("output",),
            ),
        ),
        terms=(PlanTerm(kind="compute", where="jetson", seconds=0.03),),
        alternatives={"jetson": PlanAlternative(latency_s=0.2, period_s=0.15)},
        notes=("nano is left out: it was not measured",),
    )
