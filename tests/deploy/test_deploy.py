"""What is in deploy/: the unit by systemd's checker, the manifest by Kubernetes' schema, containers by reading."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from defer.documents.cluster import loads_cluster
from node_agent.cli import agent_command

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "defer-agent.service"
MANIFEST = DEPLOY / "kubernetes" / "defer.yaml"
CONTAINERS = sorted((DEPLOY / "containers").glob("*.Containerfile"))
SCHEMA = json.loads((Path(__file__).parent / "kubernetes-1.37.json").read_text())


def options_of(arguments: list[str]) -> set[str]:
    return {each.split("=")[0] for each in arguments if each.startswith("--")}


def known_options() -> set[str]:
    return {name for parameter in agent_command.params for name in parameter.opts}


# --------------------------------------------------------------------------------------------------- systemd


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    """The program's path is another one here; everything else is checked as it is."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/defer/bin/defer-agent", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def unit() -> dict[str, str]:
    pairs = re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M)
    return dict(pairs)


def test_the_unit_runs_without_privileges_restarts_and_is_watched():
    found = unit()
    assert found["Type"] == "notify"
    assert found["DynamicUser"] == "yes"
    assert found["Restart"] == "always"
    assert int(found["WatchdogSec"]) > 1
    assert found["CapabilityBoundingSet"] == ""
    assert found["NoNewPrivileges"] == "yes"
    # These would hide the GPU, or forbid what engines do.
    assert not {"PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute", "User"} & set(found)


def test_the_unit_stops_no_sooner_than_the_agent_may_take():
    drain = next(parameter for parameter in agent_command.params if parameter.name == "drain_timeout")
    assert int(unit()["TimeoutStopSec"]) > float(drain.default) + 10


def test_the_units_command_has_only_options_that_exist():
    assert options_of(unit()["ExecStart"].split()) <= known_options()
    example = re.search(r"DEFER_AGENT_OPTIONS=(.*)", UNIT.read_text()).group(1)
    assert options_of(example.split()) <= known_options()


# ------------------------------------------------------------------------------------------------ Kubernetes


def documents() -> list[dict]:
    return [each for each in yaml.safe_load_all(MANIFEST.read_text()) if each]


def validate(document: dict) -> None:
    schema = {**SCHEMA["kinds"][document["kind"]], "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("document", documents(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_every_object_follows_the_published_schema(document):
    validate(document)


def test_the_schema_refuses_what_is_wrong():
    daemon = next(each for each in documents() if each["kind"] == "DaemonSet")
    container = daemon["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container["readinessProbe"]
    with pytest.raises(jsonschema.ValidationError):
        validate(daemon)
    del container["readynessProbe"]
    container["ports"][0]["containerPort"] = "7700"
    with pytest.raises(jsonschema.ValidationError):
        validate(daemon)


def workloads() -> list[dict]:
    return [each for each in documents() if each["kind"] in ("DaemonSet", "Deployment")]


@pytest.mark.parametrize("workload", workloads(), ids=lambda w: w["metadata"]["name"])
def test_every_workload_is_probed_bounded_and_unprivileged(workload):
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert workload["spec"]["selector"]["matchLabels"] == workload["spec"]["template"]["metadata"]["labels"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert "memory" in container["resources"]["limits"]
        assert container["resources"]["requests"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_kinds_are_those_that_are_promised():
    kinds = {(each["kind"], each["metadata"]["name"]) for each in documents()}
    assert {
        ("DaemonSet", "agent-cpu"),
        ("DaemonSet", "agent-gpu"),
        ("Deployment", "dispatcher"),
        ("Service", "dispatcher"),
    } <= kinds


def test_the_service_reaches_the_dispatcher_on_its_ports():
    service = next(each for each in documents() if each["kind"] == "Service")
    deployment = next(each for each in documents() if each["kind"] == "Deployment")
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports


def test_the_cluster_file_in_the_manifest_is_one():
    config = next(each for each in documents() if each["kind"] == "ConfigMap")
    cluster = loads_cluster(config["data"]["cluster.toml"])
    service = next(each for each in documents() if each["kind"] == "Service")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert cluster.dispatcher_host == host


@pytest.mark.parametrize("name", ["agent-cpu", "agent-gpu"])
def test_the_agents_arguments_exist(name):
    daemon = next(each for each in workloads() if each["metadata"]["name"] == name)
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    assert options_of(container["args"]) <= known_options()


def test_the_dispatchers_arguments_exist():
    from defer.cli import serve

    deployment = next(each for each in workloads() if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    known = {name for parameter in serve.command.params for name in parameter.opts}
    assert options_of(container["args"]) <= known
    assert known_paths(container) == {"/healthz", "/readyz"}


def known_paths(container: dict) -> set[str]:
    """The paths that probes ask for; checks that they exist, at a port that serves them."""
    from defer.live.watcher import Watcher

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    served = container["args"][container["args"].index("--metrics") + 1]
    paths = set()
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[kind]["httpGet"]
        assert served.endswith(f":{ports[asked['port']]}")
        paths.add(asked["path"])
    assert paths <= Watcher(None).pages().keys()
    return paths


@pytest.mark.parametrize("workload", workloads(), ids=lambda w: w["metadata"]["name"])
def test_what_is_scraped_is_served(workload):
    template = workload["spec"]["template"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    assert any(each.endswith(f":{ports['metrics']}") for each in container["args"])


# ------------------------------------------------------------------------------------------------- containers


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text())
    found = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, rest in found]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_containers_run_as_a_user_and_name_their_versions(path):
    found = instructions(path)
    users = [rest for word, rest in found if word == "USER"]
    assert users[-1] == "10001"
    for word, rest in found:
        if word == "FROM" and "$" not in rest:
            assert ":" in rest.split()[0]
            assert not rest.split()[0].endswith(":latest")
        if word in ("ENTRYPOINT", "CMD", "SHELL"):
            assert isinstance(json.loads(rest), list)  # the form without a shell, so that signals arrive
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists" in rest
        if word in ("ADD", "MAINTAINER"):
            pytest.fail(f"{word} in {path.name}")


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_containers_copy_what_there_is_and_install_extras_that_exist(path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word, rest in instructions(path):
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        for named in re.findall(r'"\.\[([\w,]+)\]"', rest) if word == "RUN" else ():
            assert set(named.split(",")) <= set(extras)


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_containers_start_with_options_that_exist(path):
    found = dict(instructions(path))
    arguments = [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]
    if arguments[0] == "defer-agent":
        assert options_of(arguments) <= known_options()
    else:
        assert arguments[:2] == ["defer", "serve"]


def test_the_probe_has_the_options_that_the_manifest_uses():
    from node_agent.probe import main

    done = CliRunner().invoke(main, ["--help"])
    for option in ("--timeout", "--oldest"):
        assert option in done.output
