"""What people get wrong on the command line: one line that says what, a hint, and the exit code of the table."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from defer.cli import VERBS, group
from node_agent.finite import Finite
from tests.defer.cli_fixtures import a_folder, failed, run

MODEL, CLUSTER = "tiny_residual.onnx", "cluster.toml"
PLAN = f"plan {MODEL} --cluster {CLUSTER}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = a_folder(tmp_path_factory.mktemp("mistakes"))
    (made / "bad.toml").write_text("x = ")
    (made / "local.toml").write_text(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'
    )
    (made / "bad.json").write_text('{"kind": "plan", ')
    (made / "text.txt").write_text("hello")
    (made / "text.onnx").write_text("hello")
    (made / "empty.onnx").write_bytes(b"")
    (made / "text.npy").write_text("hello")
    (made / "foreign.json").write_text('{"a": 1}')
    return made


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("analyze gone.onnx", 66, "gone.onnx"),
        ("analyze text.onnx", 65, "text.onnx: not an ONNX model"),
        ("analyze empty.onnx", 65, "the file is empty"),
        (f"analyze {MODEL} --input foo=1,2", 65, "no input 'foo'"),
        (f"analyze {MODEL} --input input=-1,3", 2, "is not a shape"),
        (
            f"analyze {MODEL} --input input=1,99999999999999999999",
            2,
            "cannot have the shape 1,99999999999999999999",
        ),
        (f"analyze {MODEL} --input input={'9' * 5000}", 2, "is not a shape"),
        (f"analyze {MODEL} -o foreign.json", 73, "not a blocks document"),
        (f"analyze {MODEL} -o gone/x.json", 74, "its directory does not exist"),
        (f"analyze {MODEL} -o /dev/full", 74, "no space left"),
        (f"partition {MODEL} -o parts", 2, "--parts, --plan and --at"),
        (f"partition {MODEL} --parts -2 -o parts", 2, "-2 is not in the range"),
        (f"partition {MODEL} --parts 999 -o parts", 2, "cannot be cut into 999 parts"),
        (f"partition {MODEL} --at 9999 -o parts", 2, "no place to cut"),
        (f"partition {MODEL} --parts 2 --precision fp17 -o parts", 2, "'fp16', 'bf16'"),
        (f"partition {MODEL} --parts 2 -o text.txt", 73, "is a file"),
        (f"partition {MODEL} --parts 2 -o .", 73, "no output of a split"),
        (f"partition {MODEL} --plan bad.json -o parts", 65, "bad.json: not JSON"),
        (f"partition {MODEL} --parts 2 --precision int8 --calibration gone.npz -o parts", 66, "gone.npz"),
        (f"plan {MODEL}", 2, "--cluster"),
        (f"plan {MODEL} --cluster gone.toml", 66, "gone.toml: no such file"),
        (f"plan {MODEL} --cluster bad.toml", 78, "bad.toml: not TOML"),
        (f"{PLAN} --place gone=0:3", 78, "'gone'"),
        (f"serve --cluster {CLUSTER} --wait nan", 2, "not a finite number"),
        (f"deploy {MODEL} --sample nan", 2, "is not a share"),
        ("status --watch inf", 2, "inf"),
        ("agent --drain-timeout nan", 2, "not a finite number"),
        ("agent --advertise 10.0.0.5", 2, "it needs --dial"),
        ("serve --cluster local.toml --state /proc/x", 74, "/proc/x: no directory can be made there"),
        ("serve --cluster local.toml --state text.txt", 74, "text.txt: something else is there"),
        ("keys authorise gone.toml", 66, "gone.toml: no such file"),
        (f"{PLAN} --place jetson=-1:3", 2, "is not a placement"),
        (f"{PLAN} --pin 0:2=gone", 78, "'gone'"),
        (f"{PLAN} --exclude gone", 78, "'gone'"),
        (f"{PLAN} --exclude jetson --exclude nano", 69, "every device that computes is excluded"),
        (f"{PLAN} --codec gone", 2, "gone"),
        (f"{PLAN} --max-latency=-5ms", 2, "is not a duration"),
        (f"{PLAN} --profile bad.json", 65, "bad.json: not JSON"),
        (f"{PLAN} --plot x.foo", 2, "no kind of drawing"),
        (f"replan {MODEL} --running gone.json --cluster {CLUSTER}", 66, "gone.json"),
        (f"replan {MODEL} --running plan.json --cluster {CLUSTER} --rate -1", 2, "-1"),
        (f"jobs --job {MODEL}=-5 --cluster {CLUSTER}", 2, "no model and rate"),
        (f"jobs --job gone.onnx=5 --cluster {CLUSTER}", 66, "gone.onnx"),
        ("models build gone -o x.onnx", 65, "no reference network 'gone'"),
        ("models build tiny_residual -o gone/x.onnx", 74, "No such file or directory"),
        ("models build tiny_residual -o text.txt", 73, "text.txt"),
        ("schema gone", 2, "'gone'"),
        ("completion gone", 2, "'gone'"),
        ("keys list --keys gone", 66, "no folder of keys"),
        ("keys make y --role agent --keys /proc/gone", 78, "cannot be written"),
        ("keys authorise text.txt --keys keys", 78, "no certificate"),
        ("serve --cluster gone.toml", 66, "gone.toml"),
        (f"serve --cluster {CLUSTER} --model gone.onnx --insecure", 66, "gone.onnx"),
        (f"serve --cluster {CLUSTER} --plot x.svg --insecure", 2, "need --model"),
        (
            f"serve --cluster {CLUSTER} --model {MODEL} --plan plan.json --objective cost",
            2,
            "was made for latency",
        ),
        (f"deploy {MODEL} --plan plan.json --objective throughput", 2, "was made for latency"),
        (f"deploy {MODEL} --plan plan.json --replicas", 2, "the plan that is given says"),
        (f"deploy {MODEL} --replicas", 2, "replicas only raise the throughput"),
        (f"serve --cluster {CLUSTER} --model {MODEL} --replicas --insecure", 2, "only raise the throughput"),
        (f"serve --cluster {CLUSTER} --replicas --insecure", 2, "--replicas needs --model"),
        (f"deploy {MODEL} --name ../x", 2, "a model cannot be called '../x'"),
        (f"deploy {MODEL} --name m@2", 2, "a version is said with --version"),
        (f"deploy {MODEL} --name '\x1b[31mvil\nx'", 2, r"a model cannot be called '\x1b[31mvil\nx'"),
        (f"deploy {MODEL} --name stats --version 2", 2, "a model cannot be called 'stats'"),
        (f"deploy {MODEL} --version 'a b'", 2, "a version cannot be called 'a b'"),
        (f"deploy {MODEL} --name ''", 2, "--name is empty"),
        (f"deploy {MODEL} --version ''", 2, "--version is empty"),
        (f"deploy {MODEL} --plan ''", 2, "--plan is empty"),
        (f"deploy {MODEL} --max-error ''", 2, "'' is not an error budget"),
        (f"deploy {MODEL} --version 7 --canary nan", 2, "--canary: 'nan' is not a share"),
        (f"deploy {MODEL} --version 7 --canary 110%", 2, "write 10% or 0.1"),
        (f"deploy {MODEL} --sample inf", 2, "--sample: 'inf' is not a share"),
        (f"deploy {MODEL} --input input=1,99999999999999999999", 2, "cannot have the shape"),
        (
            f"deploy {MODEL} --max-error 0.01 --calibration plan.json",
            65,
            "plan.json is not an .npz file of numbers",
        ),
        (f"deploy {MODEL} --max-error 0.01 --calibration gone.npz", 66, "gone.npz: no such file"),
        ("deploy stats.onnx", 2, "give it another name with --name"),
        ("deploy 'a name.onnx'", 2, "give it another name than its file's with --name"),
        (f"serve --cluster {CLUSTER} --model {MODEL} --name '' --insecure", 2, "--name is empty"),
        (f"serve --cluster {CLUSTER} --model {MODEL} --name 'a b' --insecure", 2, "cannot be called 'a b'"),
        (f"serve --cluster {CLUSTER} --model {MODEL} --name m@ --insecure", 2, "'m@' names no version"),
        (
            f"serve --cluster {CLUSTER} --model {MODEL} --name stats@1 --insecure",
            2,
            "cannot be called 'stats'",
        ),
        ("rollout show ''", 2, "NAME is empty"),
        ("rollout promote m ''", 2, "VERSION is empty"),
        ("rollout canary m 2 --share ''", 2, "--share: '' is not a share"),
        ("undeploy ''", 2, "NAME is empty"),
        (f"serve --cluster {CLUSTER} --listen 127.0.0.1:65535", 2, "leaves no room"),
        (f"serve --cluster {CLUSTER} --http here", 78, "--http: 'here' has no port"),
        ("gateway --dispatcher 127.0.0.1:1", 2, "nowhere to listen"),
        ("gateway --http 127.0.0.1:0 --token-file gone --dispatcher 127.0.0.1:1", 66, "gone"),
        ("infer", 2, "give one of FILE"),
        ("infer gone.npy", 66, "gone.npy: no such file"),
        ("infer text.npy", 65, "not a .npy or .npz file"),
        ("infer --random -o x.txt", 2, "neither .npz nor .npy"),
        ("infer --random -o /dev/full", 2, "'/dev/full' ends in neither .npz nor .npy"),
        ("infer --random --model ''", 2, "--model is empty"),
        ("infer --random --dim a=99999999999999999999", 2, "is not NAME=SIZE"),
        ("infer --random --batch 99999999999999999999", 2, "is not in the range"),
        ("infer .", 66, "this is a folder, not a file"),
        ("infer /dev/zero", 66, "this is no regular file"),
        ("infer --input x.npy", 2, "is not NAME=FILE.npy"),
        (f"infer --random --dim a={'9' * 5000}", 2, "is not NAME=SIZE"),
        ("infer --random --dim 3", 2, "is not NAME=SIZE"),
        ("infer --random --timeout -1", 2, "-1"),
        ("infer --random --seed -1", 2, "-1"),
        ("trace --seed -1", 2, "-1"),
        ("bench --watts jetson", 2, "requires 2 arguments"),
        ("bench --requests 0", 2, "0 is not in the range"),
        ("trace --plot x.foo", 2, "no kind of drawing"),
        ("trace -o foreign.json", 73, "is no trace"),
        ("top", 2, "no terminal to draw on"),
        ("demo --model gone", 65, "no reference network called 'gone'"),
        ("status --dispatcher here", 78, "--dispatcher: 'here' has no port"),
        ("testbed run gone.toml -- true", 66, "gone.toml"),
    ],
)
def test_a_mistake_is_one_line_a_hint_and_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, says: str
) -> None:
    monkeypatch.chdir(folder)
    told = failed(run(*shlex.split(line)), code)
    assert says in told
    assert "hint:  " in told


def leaves(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    return [each for name, inner in command.commands.items() for each in leaves(inner, (*path, name))]


def test_no_number_of_an_option_is_infinite_or_none() -> None:
    """Numbers are read in one place; what each command does with them need not think of NaN."""
    seen = 0
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        for path, leaf in leaves(command, (verb,)):
            for param in leaf.params:
                if isinstance(param.type, click.types.FloatParamType):
                    seen += 1
                    assert isinstance(param.type, Finite), (path, param.name)
    assert seen > 15
    for text in ("nan", "inf", "-inf", "infinity", "NaN", "1e400"):
        with pytest.raises(click.BadParameter):
            Finite(0).convert(text, None, None)
    assert Finite(0, 2).convert("1.5", None, None) == 1.5


def test_every_verb_has_json_and_an_example_that_it_takes() -> None:
    """Examples are parsed by the verb's own options; the documents' tests run them."""
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        for path, leaf in leaves(command, (verb,)):
            options = {option for param in leaf.params for option in param.opts}
            assert "--json" in options, path
            context = click.Context(leaf, info_name=f"defer {' '.join(path)}")
            shown = leaf.get_help(context)
            assert f"defer {' '.join(path)}" in shown.partition("Examples:")[2], path
