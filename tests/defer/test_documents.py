"""Documents: what is written reads back, and everything wrong has one error that says where and what to do."""

import json
import stat
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer import errors
from defer.documents import (
    DOCUMENTS,
    CostProfile,
    Document,
    LinkProfile,
    Plan,
    decode,
    encode,
    parse_address,
    schema,
    write_bytes,
)
from tests.defer.plan_fixtures import CLUSTER_TOML, a_blocks_document, a_plan, a_profile

JSON_DOCUMENTS = [a_blocks_document, a_profile, a_plan]


@pytest.mark.parametrize("make", JSON_DOCUMENTS)
def test_written_documents_read_back(make: Any, tmp_path: Path) -> None:
    document = make()
    path = tmp_path / "document.json"
    document.save(path)
    assert type(document).load(path) == document
    document.save(path)  # over itself
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]


@pytest.mark.parametrize("make", JSON_DOCUMENTS)
def test_the_schema_accepts_what_is_written(make: Any) -> None:
    document = make()
    plain = json.loads(encode(document))
    jsonschema.Draft202012Validator.check_schema(schema(document.KIND))
    jsonschema.validate(plain, schema(document.KIND), cls=jsonschema.Draft202012Validator)
    for key in ("kind", "version", "model"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in plain.items() if k != key}, schema(document.KIND))


def test_the_schema_accepts_a_cluster_file_and_refuses_its_typos() -> None:
    import tomllib

    plain = tomllib.loads(CLUSTER_TOML)
    jsonschema.validate(plain, schema("cluster"))
    for path, key in [("device", "adress"), ("link", "bandwith")]:
        wrong = json.loads(json.dumps(plain))
        wrong[path][0][key] = "x"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema("cluster"))
    wrong = json.loads(json.dumps(plain))
    wrong["device"][0]["memory"] = "4 gigs"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema("cluster"))


def test_every_document_has_a_schema_and_nothing_else_has() -> None:
    assert set(DOCUMENTS) == {"cluster", "blocks", "profile", "plan"}
    assert schema("cluster.toml") == schema("cluster")
    with pytest.raises(errors.UsageError, match="no document 'plans'"):
        schema("plans")


# ------------------------------------------------------------------------------------------------- reading JSON


def test_another_kind_of_document_is_named() -> None:
    with pytest.raises(
        errors.InvalidDocument, match="this is a plan document, a profile document is needed"
    ) as caught:
        decode(CostProfile, encode(a_plan()), "plan.json")
    assert caught.value.where == "plan.json"
    assert "defer profile" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"{}", b"PK\x03\x04"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(errors.InvalidDocument) as caught:
        decode(Plan, data, "plan.json")
    assert str(caught.value).startswith("plan.json: not ")


def changed(document: Document, **changes: Any) -> bytes:
    return json.dumps({**json.loads(encode(document)), **changes}).encode()


def test_a_newer_version_asks_for_an_upgrade() -> None:
    with pytest.raises(errors.InvalidDocument, match="unknown version 2") as caught:
        decode(Plan, changed(a_plan(), version=2), "plan.json")
    assert caught.value.hint == "upgrade defer"


def test_a_missing_key_is_named() -> None:
    plain = json.loads(encode(a_plan()))
    del plain["stages"][0]["device"]
    with pytest.raises(errors.InvalidDocument, match=r"plan.json: stages\[0\]: the key 'device' is missing"):
        decode(Plan, json.dumps(plain).encode(), "plan.json")


def test_a_wrong_type_is_named_with_its_path() -> None:
    with pytest.raises(errors.InvalidDocument, match=r"plan.json: latency_s: expected a number, got text"):
        decode(Plan, changed(a_plan(), latency_s="fast"), "plan.json")


def edited(document: Document, path: str, value: Any) -> bytes:
    plain = json.loads(encode(document))
    at = plain
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        at = at[part]
    at[last] = value
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    ("make", "path", "value", "where", "what"),
    [
        (a_plan, "stages.1.start", 3, "stages[1]", "do not follow on block 2"),
        (a_plan, "stages.0.ops", [0, 7], "stages[0].ops", "not those of blocks"),
        (a_plan, "stages", [], "stages", "at least one stage"),
        (a_plan, "transfers", [], "transfers", "need 3 transfers"),
        (a_plan, "transfers.1.path", ["jetson", "desk"], "transfers[1].path", "does not lead"),
        (a_plan, "transfers.1.path", [], "transfers[1].path", "does not lead"),
        (a_plan, "transfers.1.boundary", 1, "transfers[1].boundary", "not where stage 1 begins"),
        (a_plan, "positions", [0, 3, 5, 9, 12], "stages", "are not placed"),
        (a_profile, "positions", [0, 5, 3, 9], "positions", "rise from 0"),
        (
            a_profile,
            "devices.jetson.block_seconds",
            [0.1],
            "devices.jetson.block_seconds",
            "1 values for 3 blocks",
        ),
        (a_profile, "devices.jetson.block_seconds.0", -1.0, "devices.jetson.block_seconds", "not negative"),
        (a_profile, "devices.jetson.block_resident", [1], "devices.jetson.block_resident", "1 values"),
        (
            a_profile,
            "devices.jetson.codecs.lz4.decode_s",
            [],
            "codecs.lz4.decode_s",
            "0 values for 4 boundaries",
        ),
        (a_profile, "codecs.lz4", [1.0], "codecs.lz4", "1 values for 4 boundaries"),
        (a_profile, "codecs.lz4.0", 0.0, "codecs.lz4", "above 0"),
        (a_profile, "links.0.bandwidth", "94", "links[0]", "has no unit"),
        (a_profile, "links.0.bandwidth", "0 Mbit/s", "links[0]", "above 0"),
        (a_blocks_document, "blocks", [], "blocks", "at least one block"),
        (a_blocks_document, "boundaries", [], "boundaries", "one boundary more"),
        (a_blocks_document, "blocks.1.start", 4, "blocks[1]", "do not fit its boundaries"),
        (
            a_blocks_document,
            "boundaries.1.tensors.0",
            "ghost",
            "boundaries[1]",
            "nothing is known of the tensor 'ghost'",
        ),
        (a_blocks_document, "weight_sizes", {}, "blocks[0].weights", "size of the weight"),
    ],
)
def test_contradictions_in_documents(make: Any, path: str, value: Any, where: str, what: str) -> None:
    document = make()
    with pytest.raises(errors.InvalidDocument) as caught:
        decode(type(document), edited(document, path, value), "file.json")
    assert caught.value.where.startswith("file.json")
    assert where in caught.value.where
    assert what in caught.value.message
    assert caught.value.hint


def test_keys_of_a_later_writer_are_ignored_in_json() -> None:
    assert decode(Plan, changed(a_plan(), colour="red"), "plan.json") == a_plan()


# --------------------------------------------------------------------------------------------------- files, addresses


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"my": "notes"}')
    with pytest.raises(errors.OutputExists, match="not a plan document") as caught:
        a_plan().save(path)
    assert caught.value.exit_code == 73
    assert path.read_text() == '{"my": "notes"}'
    a_plan().save(path, force=True)
    assert Plan.load(path) == a_plan()


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(errors.DiskFull) as caught:
        write_bytes("/dev/full", b"x" * 10)
    assert caught.value.where == "/dev/full"
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_missing_folder_and_a_folder_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(errors.FileProblem, match="directory does not exist") as caught:
        write_bytes(tmp_path / "missing" / "plan.json", b"")
    assert caught.value.exit_code == 74
    with pytest.raises(errors.FileProblem, match="directory"):
        write_bytes(tmp_path, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_bytes(b"")
    link.symlink_to(target)
    a_plan().save(link)
    assert link.is_symlink()
    assert Plan.load(target) == a_plan()


@pytest.mark.parametrize(
    ("text", "host", "port", "endpoint"),
    [
        ("127.0.0.1:7600", "127.0.0.1", 7600, "tcp://127.0.0.1:7601"),
        ("edge-1.local:80", "edge-1.local", 80, "tcp://edge-1.local:81"),
        ("[::1]:7600", "::1", 7600, "tcp://[::1]:7601"),
    ],
)
def test_addresses(text: str, host: str, port: int, endpoint: str) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.endpoint(1)) == (host, port, endpoint)
    assert parse_address(str(address)) == address


@given(st.floats(min_value=1, max_value=1e12), st.floats(min_value=0, max_value=100))
def test_measured_links_are_kept_exactly(bandwidth: float, delay: float) -> None:
    link = LinkProfile.of("a", "b", bandwidth, delay)
    assert (link.bytes_per_s, link.delay_s) == (bandwidth, delay)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
)
def test_any_json_is_either_read_or_refused(plain: Any) -> None:
    data = msgspec.json.encode({"kind": "profile", "devices": plain, "links": plain, "positions": plain})
    with pytest.raises(errors.InvalidDocument):
        decode(CostProfile, data, "profile.json")
