"""Every command and every program that the documents show is run here, or is listed with the reason why it is not.

A document is walked from its top to its end, as its reader would: agents, dispatchers and gateways go on beside, and a
new one ends the one before. Addresses become free ports of this machine, models are small ones of the same names. A new
block is run like all others; where that cannot be, it belongs into `NOT_RUN`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.ports import free_ports
from tests.doc_surroundings import small_models, stand_ins

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
BLOCK = re.compile(r"^( *)```(bash|sh|console|python)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
LONG = re.compile(r"(ssh \S+ )?defer (agent|serve|gateway)\b")
READY = re.compile(r"^Agent \S+ is ready|^ready\b|standing by", re.MULTILINE)
STEP_S, STOP_S = 90.0, 40.0

INDEX = "needs a package index; tests/test_house.py builds the wheel and runs it in an environment of its own"
MINUTES = "takes minutes; tests/ has it with fewer rounds"

NOT_RUN: dict[tuple[str, str], str] = {
    (
        "README.md",
        "scripts/demo",
    ): "builds ResNet-50, which takes a minute; scripts/test is what runs this",
    ("README.md", "git clone"): INDEX,
    (
        "docs/cluster.md",
        "defer discover",
    ): "needs multicast; tests/defer/test_discovery.py has a network for it",
    ("docs/install.md", "python3 -m venv ~/defer && . ~/defer/bin/activate\npip install"): INDEX,
    ("docs/install.md", "sudo apt install"): "needs a Jetson",
    ("docs/kubernetes.md", "podman build"): "needs podman and a registry; tests/deploy reads the files",
    ("docs/kubernetes.md", "kubectl label"): "needs a Kubernetes cluster",
    (
        "docs/kubernetes.md",
        "kubectl apply",
    ): "needs a Kubernetes cluster; tests/deploy checks the manifest by its schema",
    ("docs/kubernetes.md", "port-forward"): "needs a Kubernetes cluster",
    (
        "docs/live.md",
        "benchmarks.screenshots",
    ): "needs Chromium; tests/defer/test_live_pictures.py takes one picture",
    (
        "docs/operations.md",
        '--state "tls://',
    ): "needs NATS servers with TLS; tests/defer/test_standby.py has its own",
    ("docs/testbed.md", "sudo -E"): "needs root; tests/testbed runs it where the machine can",
    ("docs/testbed.md", "from benchmarks.testbed"): "needs root; tests/testbed calls all of it",
    ("docs/testing.md", "scripts/test"): "scripts/test is what runs this",
    ("docs/testing.md", "benchmarks.simulation"): MINUTES,
    ("docs/testing.md", "benchmarks.hostile"): MINUTES,
    ("docs/testing.md", "benchmarks.soak"): MINUTES,
    ("docs/testing.md", "benchmarks.chaos"): MINUTES + ", and needs root",
}
"""Blocks that are not run: page and words of theirs, and why."""

SKIPPED_LINES = {
    "pip install": INDEX,
    "defer discover": "needs multicast; tests/defer/test_discovery.py has a network",
}
"""Lines of blocks that are run otherwise."""


@dataclass(frozen=True)
class Setting:
    """What a page takes for granted, for its reader to have done.

    Agents by name and address, what is served, words that are replaced, commands before a line with certain words, and
    devices of a cluster file whose agents the page starts itself.
    """

    agents: Mapping[str, str] = field(default_factory=dict)
    serve: str = ""
    replace: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, str] | None = None
    slow: bool = False


BOTH = {"left": "192.168.1.11:7700", "right": "192.168.1.12:7700"}
EDGE = {"edge1": "10.0.0.5:7700"}
SERVE = "defer serve --cluster cluster.toml --model {}"

SETTINGS: dict[str, Setting] = {
    "README.md": Setting(
        slow=True,
        # What the text adds for tritonclient.
        replace={
            "my.onnx --objective throughput\n": "my.onnx --objective throughput --http 127.0.0.1:8000\n"
        },
    ),
    "docs/tutorial.md": Setting(slow=True),
    "docs/client.md": Setting(
        BOTH,
        SERVE.format("my.onnx"),
        before={"from tokenizers": "defer deploy bert.onnx", "default_rng(0)": "defer undeploy bert"},
        slow=True,
    ),
    "docs/cluster.md": Setting(
        {"jetson": "192.168.1.11:7700", "nano": "192.168.1.12:7700"},
        replace={"--name camera --dial": "--name camera --listen 127.0.0.1:7740 --dial"},
        before={"defer init": "rm -f cluster.toml edge.toml"},  # each line is tried by itself
        slow=True,
    ),
    "docs/gateway.md": Setting(
        BOTH,
        replace={
            "gateway --http 127.0.0.1:8000": "gateway --http 127.0.0.1:8002",
            "--http 0.0.0.0:8000 --token": "--http 127.0.0.1:8000 --token",
            "curl -s ": "curl -s --fail-with-body ",
        },
        before={
            "/v2/models/resnet50 ": "defer deploy add.onnx",
            "--token-file": "openssl rand -hex 32 > token; openssl req -x509 -newkey rsa:2048 -nodes -days 2 "
            "-subj /CN=localhost -keyout key.pem -out cert.pem 2> /dev/null",
        },
    ),
    "docs/install.md": Setting(before={"echo": "mkdir -p ~/.config/fish/completions"}),
    "docs/live.md": Setting(BOTH),
    "docs/metrics.md": Setting(BOTH, slow=True),
    "docs/operations.md": Setting(
        BOTH,
        SERVE.format("resnet50.onnx"),
        before={
            "keys authorise": "cp ~/.config/defer/keys/allowed/edge1.toml .",
            "defer trace": "defer deploy resnet50.onnx",
        },
        slow=True,
    ),
    # Here every address is this machine's, for which keys are not looked for.
    "docs/security.md": Setting(
        cluster=EDGE, before={"defer serve": "export DEFER_KEYS=~/.config/defer/keys"}, slow=True
    ),
    "docs/own-engine.md": Setting(slow=True),
    "docs/own-codec.md": Setting(BOTH, slow=True),
}


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str

    @property
    def reason(self) -> str | None:
        return next(
            (why for (page, words), why in NOT_RUN.items() if page == self.page and words in self.text), None
        )


def blocks(page: Path) -> list[Block]:
    name = str(page.relative_to(ROOT))
    found = BLOCK.findall(page.read_text())
    return [
        Block(name, language, re.sub(rf"^{indent}", "", text, flags=re.M)) for indent, language, text in found
    ]


def commands(block: Block) -> Iterator[str]:
    """The commands of a block of shell, without comments; of a console's, what follows its prompt."""
    whole = ""
    for line in block.text.replace("\\\n", "").splitlines():
        if block.language == "console" and not whole and not line.startswith("$ "):
            continue  # what it answers
        whole += ("\n" if whole else "") + re.sub(r"(^|\s+)# .*$", "", line.removeprefix("$ ")).rstrip()
        try:
            shlex.split(whole)
        except ValueError:  # a quotation goes on
            continue
        yield whole.strip()
        whole = ""
    assert not whole, f"{block.page}: a quotation does not end: {whole}"


# ------------------------------------------------------------------------------------------------------- the walk


class Walk:
    """One page's commands, one after the other, in a folder of its own."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting, self.base = folder, setting, free_ports(60)
        self.long: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self.ports: dict[str, int] = {}
        home, self.remote = folder / "home", folder / "remote"
        for each in (home / ".config", self.remote / ".config", folder / "bin"):
            each.mkdir(parents=True)
        stand_ins(folder / "bin")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DEFER_", "OTEL_", "PYTHON"))},
            "HOME": str(home),
            "REMOTE": str(self.remote),
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}:{folder / 'bin'}:{ROOT}",
        }

    def here(self, text: str) -> str:
        """`text` with addresses of this machine; the same address always becomes the same port."""
        for old, new in self.setting.replace.items():
            text = text.replace(old, new)

        def mapped(found: re.Match[str]) -> str:
            host, port = found[1], int(found[2])
            # The dispatcher is one process whatever machine a page puts it on.
            key = f"{host}:{port}" if 7700 <= port < 7800 and not host.startswith("127.") else str(port)
            if (host, port) == ("10.0.0.3", 7600):
                key = "nobody"
            if port in (7601, 7602):
                return f"127.0.0.1:{self.ports['7600'] + port - 7600}"
            self.ports.setdefault(key, self.base + 4 * len(self.ports))
            return f"127.0.0.1:{self.ports[key]}"

        text = re.sub(r"\b(localhost|\d+\.\d+\.\d+\.\d+):(\d{4})\b", mapped, text)
        text = re.sub(r"(--advertise) \S+", r"\1 127.0.0.1", text)
        # What a page leaves to the default port must find the dispatcher of this walk.
        default = self.here_port("7600")
        text = re.sub(
            r"^(defer (?:infer|status|deploy|undeploy|rollout|trace|bench|events|gateway)\b)(?!.*--dispatcher)",
            rf"\1 --dispatcher 127.0.0.1:{default}",
            text,
            flags=re.M,
        )
        text = re.sub(r"^(defer init\b)(?!.*--port)", rf"\1 --port {default}", text, flags=re.M)
        agent = f"--listen 127.0.0.1:{self.here_port('agent')}"
        text = re.sub(r"^(defer agent\b)(?!.*--(?:listen|dial))", rf"\1 {agent}", text, flags=re.M)
        return re.sub(r"(rollout|keys) (--dispatcher \S+) (\w+)", r"\1 \3 \2", text)

    def here_port(self, key: str) -> int:
        return self.ports.setdefault(key, self.base + 4 * len(self.ports))

    def write_cluster(self, devices: Mapping[str, str]) -> None:
        text = '[dispatcher]\nlisten = "127.0.0.1:7600"\n'
        text += "".join(f'[[device]]\nname = "{name}"\naddress = "{at}"\n' for name, at in devices.items())
        (self.folder / "cluster.toml").write_text(self.here(text))

    def begin(self) -> None:
        small_models(self.folder)
        devices = self.setting.agents or self.setting.cluster
        if devices:
            self.write_cluster(devices)
        for name, at in self.setting.agents.items():
            self.line(f"defer agent --name {name} --listen {at}")
        if self.setting.serve:
            self.line(self.setting.serve)

    def block(self, block: Block) -> None:
        if block.language == "python":
            if FILE.match(block.text):  # written by `packages`
                return
            self.prepare(block.text)
            self.run([sys.executable, "-c", self.here(block.text)], block.text)
            return
        for command in commands(block):
            self.prepare(command)
            self.line(command)

    def prepare(self, text: str) -> None:
        for words, command in self.setting.before.items():
            if words in text:
                self.line(command)

    def line(self, line: str) -> None:
        if not line or any(words in line for words in SKIPPED_LINES):
            return
        line = self.here(line + "\n").strip()
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self.env[name] = value.replace("~", self.env["HOME"])
        elif LONG.match(line):
            self.start(line)
        else:
            self.run(["bash", "-ec", line], line)

    def run(self, command: list[str], shown: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=STEP_S,
        )
        assert done.returncode == 0, f"{shown}\n{done.stdout}\n{self.heard()}"

    def start(self, line: str) -> None:
        what = LONG.match(line)
        assert what is not None
        listens = re.search(r"--listen (\S+)", line)
        key = what[2] if what[2] != "agent" else f"agent {listens[1] if listens else line}"
        self.stop(key)
        log = self.folder / f"log-{len(list(self.folder.glob('log-*')))}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(line),
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.long[key] = process, log
        end = time.monotonic() + STEP_S
        while not READY.search(log.read_text(errors="replace")):
            assert process.poll() is None, f"{line}\n{self.heard()}"
            assert time.monotonic() < end, f"{line} is not ready\n{self.heard()}"
            time.sleep(0.05)

    def stop(self, key: str) -> None:
        if key not in self.long:
            return
        process, log = self.long.pop(key)
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{key} does not end\n{log.read_text(errors='replace')}") from None
        assert code in (0, 130), f"{key} ended with {code}\n{log.read_text(errors='replace')}"

    def end(self) -> None:
        """Ends everything, what stops first first, whatever goes wrong."""
        for key in sorted(
            self.long, key=lambda key: ("gateway", "serve").index(key) if " " not in key else 9
        ):
            self.stop(key)

    def kill(self) -> None:
        for process, _ in self.long.values():
            process.kill()
            process.wait()

    def heard(self) -> str:
        return "\n".join(
            f"--- {key}\n{log.read_text(errors='replace')[-2000:]}" for key, (_, log) in self.long.items()
        )


# ------------------------------------------------------------------------------------------------------- the tests


def shown() -> Iterator[object]:
    for name, setting in SETTINGS.items():
        marks = [pytest.mark.integration, pytest.mark.timeout(600)]
        yield pytest.param(name, marks=[*marks, pytest.mark.slow] if setting.slow else marks, id=name)


def packages(folder: Path, page: Path) -> None:
    """What `pip install .` of a page's pyproject.toml leaves behind: its modules, and its entry points."""
    for block in blocks(page):
        named = FILE.match(block.text)
        if named is not None:
            (folder / named[1]).write_text(block.text)
    for text in re.findall(r"^```toml\n(# pyproject\.toml\n.*?)^```", page.read_text(), re.M | re.S):
        project = tomllib.loads(text)["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        groups = project["entry-points"].items()
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups
        ]
        (info / "entry_points.txt").write_text("".join(lines))


@pytest.mark.parametrize("name", list(shown()))
def test_a_page_can_be_followed(name: str, tmp_path: Path) -> None:
    page = ROOT / name
    walk = Walk(tmp_path, SETTINGS[name])
    packages(tmp_path, page)
    try:
        walk.begin()
        text = page.read_text()
        if name == "README.md":
            [cluster] = re.findall(r"^```toml\n(\[dispatcher\].*?)^```", text, re.M | re.S)
            (tmp_path / "cluster.toml").write_text(walk.here(cluster))
        for block in blocks(page):
            if block.reason is None:
                walk.block(block)
        walk.end()
    finally:
        walk.kill()


def test_every_block_is_run_or_listed_with_a_reason() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.reason or block.page in SETTINGS, (
                f"{block.page} shows a block that nothing runs; write a Setting for the page, or list the block in "
                f"NOT_RUN with the reason:\n{block.text}"
            )


def test_nothing_is_listed_that_no_page_shows() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    for page, words in NOT_RUN:
        assert any(block.page == page and words in block.text for block in found), f"{page} has no {words!r}"
    for words in SKIPPED_LINES:
        assert any(words in block.text for block in found), f"no page has {words!r}"
    assert set(SETTINGS) <= {block.page for block in found if block.reason is None}
