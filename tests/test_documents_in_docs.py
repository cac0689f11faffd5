"""What the documents show must be what the code takes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from defer.documents import loads_cluster

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES])


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "docs" / "cluster.md"], ids=lambda path: path.name
)
def test_cluster_files_are_accepted(path: Path) -> None:
    found = blocks(path, "toml")
    assert found
    for text in found:
        loads_cluster(text)


def test_the_cluster_page_shows_every_key() -> None:
    [text] = blocks(ROOT / "docs" / "cluster.md", "toml")
    from defer.documents import cluster

    for struct in (cluster.Dispatcher, cluster.Network, cluster.Device, cluster.Link):
        for key in struct.__struct_encode_fields__:
            assert re.search(rf"\b{key} =", text), (
                f"docs/cluster.md does not show {key!r} of {struct.__name__}"
            )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_compiles(path: Path) -> None:
    for text in blocks(path, "python"):
        compile(text, str(path), "exec", dont_inherit=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(path: Path) -> None:
    from defer.cli import VERBS

    for text in blocks(path, "bash"):
        for verb in re.findall(r"^defer ([a-z]+)", text, re.MULTILINE):
            assert verb in VERBS, f"{path.name} shows `defer {verb}`"


def test_the_readme_lists_each_page_once() -> None:
    listed = re.findall(r"^\|.*", (ROOT / "README.md").read_text(), re.MULTILINE)
    found = [target for row in listed for target in re.findall(r"\]\((docs/[^)#]+)\)", row)]
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert sorted(found) == sorted(
        pages - {"docs/index.md", "docs/changelog.md"} | {"docs/decisions/README.md"}
    )


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """The part of the site that the code writes; Sphinx is not needed for it."""
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "_ext" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_and_option(generated: ModuleType) -> None:
    from defer.cli import VERBS, group

    text = generated.commands()
    for verb in VERBS:
        command = group.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        part = text.partition(f"### defer {verb}\n")[2].partition("\n### ")[0]
        assert part, f"`defer {verb}` is not in the reference"
        for option in (name for each in command.params for name in each.opts if name.startswith("--")):
            assert option in part, f"{option} of `defer {verb}` is not in the reference"


def test_the_reference_has_every_key_with_its_meaning(generated: ModuleType) -> None:
    from defer.documents import cluster

    text = generated.configuration()
    for struct in (cluster.Dispatcher, cluster.Network, cluster.Device, cluster.Link):
        for key in struct.__struct_encode_fields__:
            assert re.search(rf"^\| `{key}` \| [^|].* \| .* \| \S.* \|$", text, re.MULTILINE), (
                f"{key} says nothing"
            )


def test_the_reference_has_every_error(generated: ModuleType) -> None:
    from defer.outcomes import OUTCOMES

    text = generated.errors()
    for code, outcome in OUTCOMES.items():
        assert re.search(
            rf"^\| `{code}` \| `\w+` \| {outcome.exit_code} \| {outcome.http_status} \| \S",
            text,
            re.MULTILINE,
        ), f"{code} is not in the table"


def test_every_place_for_generated_text_is_filled(generated: ModuleType) -> None:
    used = {name for path in PAGES for name in generated.PLACE.findall(path.read_text())}
    assert used == set(generated.PARTS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed; scripts/docs installs it")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "html").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^>]*", page.read_text()
        )
        assert not loaded, f"{page.name} loads {loaded}"
    for style in (tmp_path / "html").rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style.name
