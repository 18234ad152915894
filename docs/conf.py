"""The documentation site: Markdown pages and the docstrings, built without network.

sphinx-build -W --keep-going -b html docs docs/_build/html
"""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import dlkit

project = "dlkit"
author = "the authors of dlkit"
copyright = f"2026, {author}"
release = version = dlkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "serving"]

html_theme = "furo"
html_title = f"dlkit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"  # its contrast passes on white
highlight_language = "default"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Keras' own docstrings of `build` and `call` say nothing about these layers
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
add_module_names = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = napoleon_use_ivar = False

_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example):$")
_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?$")


def _words(text: str) -> str:
    """Makes plain words and `code` safe for reStructuredText: its other signs are letters here."""
    parts = re.split(r"(`+)(.+?)\1", text, flags=re.DOTALL)
    done = []
    for plain, code in zip(parts[::3], [*parts[2::3], ""], strict=True):
        done.append(re.sub(r"([*|\\]|_\b)", r"\\\1", plain))
        if code:
            done.append(f":py:obj:`{code}`" if _NAME.match(code) else f"``{code}``")
    return "".join(done)


def _docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings here are plain text: an indented block is a formula or code, words in backticks are names."""
    pieces: list[tuple[bool, list[str]]] = []  # (prose or not, lines)

    def add(prose: bool, line: str) -> None:
        if not pieces or pieces[-1][0] != prose:
            pieces.append((prose, []))
        pieces[-1][1].append(line)

    section = block = doctest = False
    for i, line in enumerate(lines):
        before = lines[i - 1].strip() if i else ""
        if not line.strip():
            doctest = False
        elif line.lstrip().startswith(">>>"):
            doctest = True
        elif not line.startswith(" "):
            section, block = bool(_SECTION.match(line)), False
        elif not (section or doctest or block or before):
            add(False, ".. code-block:: text")
            add(False, "")
            block = True
        add(not (block or doctest) and not _SECTION.match(line), line)
    lines[:] = [line for prose, part in pieces for line in (_words("\n".join(part)).split("\n") if prose else part)]


def _pages_that_exist(app, name: str, text: list[str]) -> None:
    """Leaves out of the front page what is written by a command and may not be there yet."""
    if name == "index":
        kept = (
            p for p in text[0].split("\n") if p not in ("lectures", "report") or (Path(app.srcdir) / f"{p}.md").exists()
        )
        text[0] = "\n".join(kept)


def _links_out_of_the_folder(app, name: str, text: list[str]) -> None:
    text[0] = text[0].replace("(../saved_models/README.md)", "(saved_models.md)")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon
    app.connect("source-read", _pages_that_exist)
    app.connect("source-read", _links_out_of_the_folder)
