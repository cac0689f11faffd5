"""The command line as a whole: help without the planner, interrupts, pipes, tracebacks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import defer.cli
from defer.cli import VERBS
from defer.documents import schema
from tests.defer.cli_fixtures import MAIN, ROOT, WITHOUT_PLANNER, a_folder, failed, python, run
from tests.defer.plan_fixtures import CLUSTER_TOML


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_folder(tmp_path_factory.mktemp("cli"))


# ------------------------------------------------------------------------------------------------------ the group


def test_help_lists_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for verb, (_, summary) in VERBS.items():
        assert f"  {verb} " in result.output
        assert summary.split()[0] in result.output


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"defer {defer.__version__}\n")


@pytest.mark.parametrize("verb", ["analyze", "partition", "plan", "schema", "doctor"])
def test_every_verb_explains_itself_with_examples(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"defer {verb}" in result.output
    assert "--json" in result.output


@pytest.mark.parametrize("words", [(), ("keys",), ("models",), ("rollout",)])
def test_a_group_without_a_command_asks_which(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "defer", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Commands:" in done.stderr
    assert f"error: which command of `{' '.join(('defer', *words))}`?" in done.stderr
    assert "error: Usage" not in done.stderr


def test_a_mistyped_verb_is_suggested() -> None:
    assert "there is no command 'analize', did you mean 'analyze'?" in failed(run("analize"), 2)


def test_a_mistyped_option_is_one_line() -> None:
    assert "`defer plan --help`" in failed(run("plan", "--clutser", "x"), 2)


def test_errors_are_json_where_results_are(folder: Path) -> None:
    result = run("plan", "--blocks", folder / "blocks.json", "--cluster", folder / "missing.toml", "--json")
    assert result.exit_code == 66
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "file-missing"
    assert error["exit_code"] == 66
    assert error["where"].endswith("missing.toml")


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "m.onnx"),
        ("partition", "m.onnx", "--parts", "2", "-o", "x"),
        ("plan", "m.onnx", "--cluster", "c"),
    ],
)
def test_without_the_planner_the_error_names_the_extra(words: tuple[str, ...], folder: Path) -> None:
    known = {"m.onnx": str(folder / "tiny_residual.onnx"), "c": str(folder / "cluster.toml")}
    result = python(WITHOUT_PLANNER, *(known.get(word, word) for word in words))
    assert result.returncode == 69, result.stderr
    assert 'pip install "defer-edge[planner]"' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.integration
def test_without_the_planner_help_and_documents_still_work() -> None:
    assert "analyze" in python(WITHOUT_PLANNER, "--help").stdout
    assert json.loads(python(WITHOUT_PLANNER, "schema", "plan").stdout) == schema("plan")
    doctor = python(WITHOUT_PLANNER, "doctor", "--json")
    found = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert found["networkx"]["state"] == "missing"


@pytest.mark.integration
def test_help_imports_no_room_and_no_heavy_package() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from defer.cli import group; import defer;"
        "assert CliRunner().invoke(group, ['--help']).exit_code == 0;"
        "heavy = {'onnx', 'onnx_ir', 'networkx', 'scipy', 'onnxruntime', 'numpy', 'rich', 'zmq',"
        " 'partitioner', 'router', 'models', 'node_agent'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.integration
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        MAIN,
        "plan",
        "--blocks",
        "-",
        "--cluster",
        "cluster.toml",
        "-o",
        "plan.json",
    ]
    (tmp_path / "cluster.toml").write_text(CLUSTER_TOML)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not _reads_standard_input(process.pid):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert (out, err.decode().strip().splitlines()[-1]) == (b"", "error: interrupted")
    assert b"Traceback" not in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.toml"]


def _reads_standard_input(pid: int) -> bool:
    """Whether the process waits in read(0, …): it is past its imports, which an interrupt ends in another way."""
    call = Path(f"/proc/{pid}/syscall").read_text().split()
    return call[0] in ("0", "63") and call[1] == "0x0"  # read() on x86-64 and aarch64


@pytest.mark.integration
def test_a_reader_that_leaves_is_no_error() -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{MAIN}" schema plan | true'],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert result.stderr == ""


@pytest.mark.integration
def test_a_full_disk_behind_standard_output(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", MAIN, "schema", "plan"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
    assert result.returncode == 74
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.integration
def test_a_traceback_is_shown_only_when_asked(folder: Path) -> None:
    words = ("plan", "--blocks", str(folder / "blocks.json"), "--cluster", str(folder / "missing.toml"))
    assert "Traceback" not in python(MAIN, *words).stderr
    assert "Traceback" in python(MAIN, *words, "--debug").stderr
    assert "Traceback" in python(MAIN, *words, env={**os.environ, "DEFER_DEBUG": "1"}).stderr


@pytest.mark.integration
@pytest.mark.parametrize("module", ["defer", "node_agent"])
def test_an_interrupt_while_modules_load_is_one_line(module: str) -> None:
    """The interrupt comes while the command line itself is imported, wherever that is slow."""
    code = (
        "import runpy, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{module}.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Slow())\n"
        f"runpy.run_module('{module}', run_name='__main__')"
    )
    result = python(code)
    assert (result.returncode, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.integration
@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_fault(closing: str) -> None:
    command = f'"{sys.executable}" -m defer doctor --json {closing}; exit $?'
    result = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
