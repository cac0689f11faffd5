"""How Sphinx makes the site; `scripts/docs` runs it. Nothing is fetched, and the pages load nothing from elsewhere."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))

project = "defer"
author = "The defer developers"
project_copyright = "The defer developers, Apache-2.0"
release = version = installed("defer-edge")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_ext"]
nitpicky = False  # types of NumPy and the standard library have no pages here
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4  # the same anchors as on GitHub, so that links work in both
myst_enable_extensions = ["colon_fence"]

# A command that goes on over several lines is more than Pygments knows of consoles; it is shown all the same.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"defer {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


DECISIONS = "\n```{toctree}\n:glob:\n:hidden:\n\n0*\n```\n"


def _fill_in(_app: Any, name: str, source: list[str]) -> None:
    """Replaces `<!-- generated: NAME -->` by what the code says; see `_ext/generated.py`."""
    import generated

    # The list of decisions is written for GitHub too, which knows no toctree.
    source[0] = generated.filled(source[0]) + (DECISIONS if name == "decisions/README" else "")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
