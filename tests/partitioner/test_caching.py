"""Decoders with a cache are refused by name; models that only look alike are not."""

import pytest
from onnx import TensorProto, helper

import partitioner
from partitioner.errors import KeyValueCache, UnsupportedOp


def decoder(build, past: str | None, present: str | None):
    """One step: what was kept is joined with what is new, and handed out again."""
    build.input("hidden", [1, "new", 8])
    build.weight("w", (8, 8))
    build.op("MatMul", "hidden", "w", out="keys")
    if past is None:
        build.op("Relu", "keys", out="joined")
    else:
        build.input(past, [1, "kept", 8])
        build.op("Concat", past, "keys", out="joined", axis=1)
    build.op("ReduceMean", "joined", out="y")
    build.output("y", [1, 1, 1])
    if present is not None:
        build.op("Identity", "joined", out=present)
        build.output(present, [1, "all", 8])
    return build.model(opset=17)


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.11.decoder.value", "present.11.decoder.value"),
        ("past_key_values.0.encoder.key", None),  # computed once, handed in at each step
        ("past_0", "present_0"),
        ("past_key_self_3", "present_key_self_3"),
        ("past", "present"),
        ("layers.0.k_cache", "layers.0.k_cache_out"),
        ("kv_cache", "new_kv_cache"),
        ("key_cache.5", "updated_key_cache.5"),
        ("cache_value_2", "present_value_2"),
    ],
)
def test_a_cache_is_refused(harness, past, present):
    with pytest.raises(KeyValueCache) as caught:
        partitioner.analyze(decoder(harness.Builder(), past, present), {"hidden": (1, 1, 8), past: (1, 4, 8)})
    assert repr(past) in str(caught.value)
    assert present is None or repr(present) in str(caught.value)
    assert "use_cache=False" in caught.value.hint
    assert isinstance(caught.value, UnsupportedOp)


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("h0", "hn"),
        ("past_values", "mean"),  # a time series
        ("past_values", None),
        ("cache_last_channel", "cache_last_channel_next"),  # a recogniser's state
        ("state_in", "state_out"),
        ("keys", "present"),
        (None, "present.0.key"),  # the first step makes a cache that it does not take
    ],
)
def test_states_are_no_cache(harness, past, present):
    shapes = {"hidden": (1, 1, 8)} | ({past: (1, 4, 8)} if past else {})
    if past == "keys":
        build = harness.Builder()
        build.input("keys", [1, 8])
        build.op("Relu", "keys", out="present")
        build.output("present", [1, 8])
        model, shapes = build.model(opset=17), {"keys": (1, 8)}
    else:
        model = decoder(harness.Builder(), past, present)
    assert len(partitioner.analyze(model, shapes).blocks) >= 1


def attention(past: bool):
    """ONNX Runtime's grouped attention, whose past has a name that says nothing."""
    names = ["q", "k", "v", "a" if past else "", "b" if past else "", "lengths", "total"]
    float_, int_ = TensorProto.FLOAT, TensorProto.INT32
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "c", "d"], name="attend", domain="com.microsoft",
        num_heads=2, kv_num_heads=2,
    )  # fmt: skip
    info = helper.make_tensor_value_info
    inputs = [info(name, float_, [1, 4, 16]) for name in "qkv"]
    inputs += [info(name, float_, [1, 2, "kept", 8]) for name in "ab"] if past else []
    inputs += [info("lengths", int_, [1]), info("total", int_, [])]
    outputs = [info("y", float_, [1, 4, 16])] + [info(name, float_, [1, 2, "all", 8]) for name in "cd"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=8
    )


def test_attention_with_a_past_is_refused():
    with pytest.raises(KeyValueCache, match=r"'GroupQueryAttention' .*'attend'.* input 'a'"):
        partitioner.analyze(attention(past=True), {"a": (1, 2, 4, 8), "b": (1, 2, 4, 8)})
    partitioner.analyze(attention(past=False))
