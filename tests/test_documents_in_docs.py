"""What the documents show must be what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from defer.documents import loads_cluster

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


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
