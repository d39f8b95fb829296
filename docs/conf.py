"""Sphinx: MyST pages, docstrings as they are, every warning an error (``make docs``)."""

import os
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import reference  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

project = "vae_jax"
author = "the authors of vae_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["generated"]
html_theme = "furo"
html_title = "vae_jax"
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
smartquotes = False

# Two pages are notebooks: they run in an empty folder, and an error in one ends the build.
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds of a cell
nb_merge_streams = True
os.environ["PYTHONPATH"] = str(HERE.parent)

reference.write(HERE / "generated")

# What stays as it is in a line: escapes, literals and roles, strong text, emphasis. Other marks are
# characters: a lone * or |, and a _ at the end of a word (an array's shape, h_…xF).
KEEP = (
    r"\\.",
    r"``.*?``",
    r"`[^`]*`_?",
    r"\*\*[^*]+\*\*",
    r"(?<!\w)\*[^\s*](?:[^*]*[^\s*])?\*(?!\w)",
)
MARKUP = re.compile("|".join(KEEP) + r"|[|*]|(?<=\w)_(?!\w)")


def escape_line(line: str) -> str:
    """A line of prose whose lone ``*`` and ``|`` are no markup of RST."""

    def keep_or_escape(match: re.Match) -> str:
        if match[0] in ("*", "|", "_"):
            return "\\" + match[0]
        return match[0]

    return MARKUP.sub(keep_or_escape, line)


def escape_docstring(app: Sphinx, what: str, name: str, obj: object, options: dict, lines: list):
    """Escape the lines outside of indented blocks that ``::`` opens: code and equations."""
    block = None  # the indentation of the line that opened a block
    for place, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indentation <= block:
            block = None
        if block is not None:
            continue
        opens = line.rstrip().endswith("::") or line.lstrip().startswith(".. math::")
        if opens:
            block = indentation
        else:
            lines[place] = escape_line(line)


def setup(app: Sphinx) -> None:
    """Docstrings are escaped after napoleon has read them."""
    app.connect("autodoc-process-docstring", escape_docstring, priority=900)
