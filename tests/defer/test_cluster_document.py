"""cluster.toml: what it says, and one error with place and way out for every mistake in it."""

import re
from pathlib import Path

import pytest

from defer import errors
from defer.documents import Cluster, loads_cluster
from defer.documents.address import parse_address
from tests.defer.plan_fixtures import CLUSTER_TOML


def test_a_cluster_reads() -> None:
    cluster = loads_cluster(CLUSTER_TOML)
    assert cluster.names == ("jetson", "nano", "desk")
    jetson = cluster.device("jetson")
    assert jetson.memory_bytes == 4 << 30
    assert jetson.flop_per_s == 200e9
    assert [device.name for device in cluster.agents] == ["jetson", "nano"]
    assert not cluster.device("desk").has_agent
    links = {(link.source, link.target): link for link in cluster.directed_links()}
    assert len(links) == 6  # a mesh of three
    assert links["jetson", "nano"].bandwidth == links["nano", "jetson"].bandwidth == 12.5e6
    assert links["jetson", "nano"].delay == 0.002
    assert links["desk", "jetson"].bandwidth is None


def test_the_dispatchers_device_is_added_when_nobody_names_it() -> None:
    cluster = loads_cluster('[[device]]\nname = "a"\naddress = "127.0.0.1:7610"\n')
    assert cluster.names == ("a", "dispatcher")
    assert not cluster.device("dispatcher").computes
    assert cluster.dispatcher.listen == "127.0.0.1:7600"


def test_links_without_a_mesh_are_those_of_the_file() -> None:
    cluster = loads_cluster(
        CLUSTER_TOML + "\n[network]\nmesh = false\nbandwidth = '1 Gbit/s'\ndelay = '1 ms'\n"
    )
    links = {(link.source, link.target): link for link in cluster.directed_links()}
    assert set(links) == {("jetson", "nano"), ("nano", "jetson")}


def test_network_defaults_complete_links() -> None:
    cluster = loads_cluster(CLUSTER_TOML + "\n[network]\nbandwidth = '1 Gbit/s'\ndelay = '1 ms'\n")
    links = {(link.source, link.target): link for link in cluster.directed_links()}
    assert (links["jetson", "nano"].bandwidth, links["jetson", "nano"].delay) == (12.5e6, 0.002)
    assert (links["desk", "nano"].bandwidth, links["desk", "nano"].delay) == (125e6, 0.001)


def test_one_way_links_differ() -> None:
    text = CLUSTER_TOML.replace('between = ["jetson", "nano"]', 'from = "jetson"\nto = "nano"')
    links = {(link.source, link.target): link for link in loads_cluster(text).directed_links()}
    assert links["jetson", "nano"].bandwidth == 12.5e6
    assert links["nano", "jetson"].bandwidth is None


def test_two_devices_that_dial_do_not_mesh() -> None:
    cluster = loads_cluster('[[device]]\nname="a"\ndials=true\n[[device]]\nname="b"\ndials=true\n')
    pairs = {(link.source, link.target) for link in cluster.directed_links()}
    assert pairs == {("a", "dispatcher"), ("dispatcher", "a"), ("b", "dispatcher"), ("dispatcher", "b")}


A = '[[device]]\nname = "a"\naddress = "10.0.0.1:7610"\n'
B = '[[device]]\nname = "b"\naddress = "10.0.0.2:7610"\n'

WRONG_CLUSTERS = [
    ("x =", "", "not TOML"),
    ("version = 2\n" + A, "", "unknown version 2"),
    ('kind = "plan"\n' + A, "", "not a cluster document"),
    ("", "device", "no device computes"),
    ('[[device]]\nnme = "a"\n', "device[0]", "unknown key 'nme', did you mean 'name'?"),
    ("[dispatch]\n" + A, "", "unknown key 'dispatch', did you mean 'dispatcher'?"),
    ('[dispatcher]\nlistn = "x"\n' + A, "dispatcher", "did you mean 'listen'?"),
    (
        A + '[[link]]\nbetween = ["a", "dispatcher"]\nbandwith = "1 Gbit/s"\n',
        "link[0]",
        "did you mean 'bandwidth'?",
    ),
    ('[[device]]\naddress = "10.0.0.1:7610"\n', "device[0]", "the key 'name' is missing"),
    (A + A, "device[1].name", "taken by device[0]"),
    ('[[device]]\nname = "a b"\naddress = "10.0.0.1:1"\n', "device[0].name", "is not a name"),
    ('[[device]]\nname = "a"\n', "device[0]", "has no address"),
    ('[[device]]\nname = "a"\ncomputes = false\n', "device[0]", "has no address"),
    ('[[device]]\nname = "a"\naddress = "10.0.0.1"\n', "device[0].address", "has no port"),
    ('[[device]]\nname = "a"\naddress = ":7610"\n', "device[0].address", "has no host"),
    ('[[device]]\nname = "a"\naddress = "10.0.0.1:99999"\n', "device[0].address", "is not a port"),
    ('[[device]]\nname = "a"\naddress = "10.0.0.1:0"\n', "device[0].address", "port 0"),
    ('[[device]]\nname = "a"\naddress = "0.0.0.0:7610"\n', "device[0].address", "to listen on"),
    ('[[device]]\nname = "a"\naddress = "tcp://10.0.0.1:7610"\n', "device[0].address", "scheme"),
    ('[[device]]\nname = "a"\naddress = "[nonsense]:7610"\n', "device[0].address", "not an IPv6 address"),
    ('[[device]]\nname = "a"\naddress = "a host:7610"\n', "device[0].address", "is not a host"),
    (A + "dials = true\n", "device[0].address", "dials out as well"),
    (A + 'memory = "4 gigs"\n', "device[0].memory", "not a unit of a size"),
    (A + 'memory = "0 B"\n', "device[0].memory", "too small"),
    (
        A + "memory = 4\n",
        "device[0].memory",
        'text in quotes with a unit, such as "4 GiB", got a whole number',
    ),
    (
        A + 'engine_options = { fallback = "maybe" }\n',
        "device[0].engine_options.fallback",
        "'maybe' is neither yes nor no",
    ),
    (
        A + 'engine_options = { "tensorrt.fallback" = "nope" }\n',
        "device[0].engine_options.tensorrt.fallback",
        "neither",
    ),
    (
        A + 'precision = "fp17"\n',
        "device[0].precision",
        "'fp17' is not known here: it may be bf16, fp16, fp32, fp8, int8, int8-fp16; did you mean 'fp16'?",
    ),
    ('[dispatcher]\nreplan = "some"\n' + A, "dispatcher.replan", "it may be every, never, own"),
    (A + 'computes = "no"\n', "device[0].computes", "expected true or false, got text"),
    (A + A.replace('"a"', '"b"'), "device[1].address", "has the address of 'a'"),
    (A + B.replace("2:7610", "1:7612"), "device[1].address", "takes the ports 7612 to 7614"),
    (A.replace("10.0.0.1:7610", "localhost:7601"), "device[0].address", "the dispatcher takes 7600 to 7602"),
    (A + 'speed = "fast"\n', "device[0].speed", "is not a speed"),
    ('[dispatcher]\ndevice = "desk"\n' + A, "dispatcher.device", "no [[device]] is named 'desk'"),
    ('[dispatcher]\nlisten = "7600"\n' + A, "dispatcher.listen", "has no port"),
    ('[dispatcher]\nadvertise = "no host"\n' + A, "dispatcher.advertise", "is not a host"),
    (A + '[[link]]\nbetween = ["a", "c"]\n', "link[0]", "no [[device]] is named 'c'"),
    (A + '[[link]]\nbetween = ["a", "a"]\n', "link[0]", "to itself"),
    (A + '[[link]]\nbetween = ["a"]\n', "link[0].between", "length"),
    (A + '[[link]]\nfrom = "a"\n', "link[0]", "say either"),
    (A + "[[link]]\n", "link[0]", "say either"),
    (A + B + '[[link]]\nbetween = ["a", "b"]\nfrom = "a"\nto = "b"\n', "link[0]", "say either"),
    (
        A + B + '[[link]]\nbetween = ["a", "b"]\n[[link]]\nfrom = "b"\nto = "a"\n',
        "link[1]",
        "described by link[0]",
    ),
    (
        A + B + '[[link]]\nbetween = ["a", "b"]\nbandwidth = "fast"\n',
        "link[0].bandwidth",
        "is not a bandwidth",
    ),
    (A + B + '[[link]]\nbetween = ["a", "b"]\nbandwidth = "0 bit/s"\n', "link[0].bandwidth", "too small"),
    (A + B + '[[link]]\nbetween = ["a", "b"]\ndelay = "-2 ms"\n', "link[0].delay", "is not a duration"),
    (
        '[[device]]\nname="a"\ndials=true\n[[device]]\nname="b"\ndials=true\n[[link]]\nbetween=["a","b"]\n',
        "link[0]",
        "both dial",
    ),
    ('[network]\nbandwidth = "x"\n' + A, "network.bandwidth", "is not a bandwidth"),
    ('[network]\ncodec = "zip"\n' + A, "network.codec", "'zip' is unknown"),
    ('[dispatcher]\nrouting_v = "20"\n' + A, "dispatcher.routing_v", "no unit"),
]


@pytest.mark.parametrize(
    ("text", "where", "what"), WRONG_CLUSTERS, ids=[f"{w}-{t}" for _, w, t in WRONG_CLUSTERS]
)
def test_mistakes_in_cluster_files(text: str, where: str, what: str) -> None:
    with pytest.raises(errors.InvalidCluster) as caught:
        loads_cluster(text, "my.toml")
    assert caught.value.where == (f"my.toml: {where}" if where else "my.toml")
    assert what in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 78


def test_an_unknown_device_lists_the_known() -> None:
    with pytest.raises(errors.UnknownDevice, match="no device 'nona'") as caught:
        loads_cluster(CLUSTER_TOML).device("nona")
    assert "nano" in caught.value.hint


@pytest.mark.parametrize(
    ("dispatcher", "what"),
    [
        ("", "cannot reach it"),
        ('[dispatcher]\nlisten = "0.0.0.0:7600"\n', "does not say at which one"),
        ('[dispatcher]\nlisten = "0.0.0.0:7600"\nadvertise = "10.0.0.9"\n', ""),
        ('[dispatcher]\nlisten = "10.0.0.9:7600"\n', ""),
    ],
)
def test_a_dispatcher_that_agents_cannot_reach_is_refused_when_it_starts(dispatcher: str, what: str) -> None:
    cluster = loads_cluster(dispatcher + A)
    if what:
        with pytest.raises(errors.InvalidCluster, match=what):
            cluster.check_serving()
    else:
        cluster.check_serving()
        assert cluster.dispatcher_host == "10.0.0.9"


def test_a_cluster_on_one_machine_serves() -> None:
    cluster = loads_cluster('[[device]]\nname = "a"\naddress = "localhost:7610"\n')
    cluster.check_serving()
    assert cluster.dispatcher_host == "127.0.0.1"


def test_a_cluster_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.InvalidCluster, match="UTF-8"):
        Cluster.load(path)
    with pytest.raises(errors.FileMissing, match="no such file"):
        Cluster.load(tmp_path / "missing.toml")


# ------------------------------------------------------------------------------------- money, energy, shared media


def test_price_power_and_encryption_are_per_second_and_byte() -> None:
    text = CLUSTER_TOML.replace(
        'speed = "200 GFLOP/s"',
        'speed = "200 GFLOP/s"\nprice = 0.36\npower = "15 W"\nidle_power = "5 W"\nencryption = "1 GB/s"',
    ).replace('delay = "2 ms"', 'delay = "2 ms"\nencrypted = true\nprice_per_gb = 0.1\njoules_per_gb = 20\n')
    cluster = loads_cluster(text)
    jetson = cluster.device("jetson")
    assert jetson.price_per_s == pytest.approx(0.0001)
    assert jetson.added_watts == 10.0
    assert jetson.crypt_s_per_byte == 1e-9
    links = {(link.source, link.target): link for link in cluster.directed_links()}
    link = links["nano", "jetson"]
    assert (link.encrypted, link.price, link.joules) == (True, 0.1 / 1e9, 20 / 1e9)
    assert not links["desk", "jetson"].encrypted


def test_both_ways_of_a_half_duplex_link_share_one_medium_of_their_own() -> None:
    cluster = loads_cluster(CLUSTER_TOML.replace('delay = "2 ms"', 'delay = "2 ms"\nhalf_duplex = true'))
    media = {(link.source, link.target): link.medium for link in cluster.directed_links() if link.medium}
    assert media == {("jetson", "nano"): "jetson <-> nano", ("nano", "jetson"): "jetson <-> nano"}


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ('memory = "4 GiB"', "price = nan", "device[0].price", ">= 0"),
        ('memory = "4 GiB"', "price = -1.0", "device[0].price", ">= 0"),
        ('memory = "4 GiB"', 'power = "15"', "device[0].power", "no unit"),
        (
            'memory = "4 GiB"',
            'power = "5 W"\nidle_power = "6 W"',
            "device[0].idle_power",
            "less while it works",
        ),
        ('memory = "4 GiB"', 'idle_power = "6 W"', "device[0].idle_power", "no power given"),
        ('memory = "4 GiB"', 'encryption = "0 GB/s"', "device[0].encryption", "too small"),
        (
            'delay = "2 ms"',
            'half_duplex = true\nmedium = "air"',
            "link[0].half_duplex",
            "shares its capacity with no other",
        ),
        ('delay = "2 ms"', "price_per_gb = inf", "link[0].price_per_gb", "not an amount"),
    ],
)
def test_costs_that_cannot_be(old: str, new: str, where: str, what: str) -> None:
    with pytest.raises(errors.InvalidCluster, match=re.escape(what)) as caught:
        loads_cluster(CLUSTER_TOML.replace(old, new, 1))
    assert where in str(caught.value.where)
    assert caught.value.hint


def test_an_address_with_a_scheme_is_told_to_leave_it_out() -> None:
    for text in ("http://127.0.0.1:7600", "https://127.0.0.1", "tcp://127.0.0.1:7600"):
        with pytest.raises(errors.InvalidCluster, match="has a scheme") as caught:
            parse_address(text)
        assert caught.value.hint.startswith(f"without {text.partition('://')[0]}://: write host:port")
