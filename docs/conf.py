"""The documentation site: Markdown pages and the docstrings, built without network.

sphinx-build -W --keep-going -b html docs docs/_build/html
"""

import importlib
import inspect
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import sphinx.util.inspect
from sphinx.util import logging

import dlkit

project = "dlkit"
author = "the authors of dlkit"
copyright = f"2026, {author}"
release = version = dlkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "serving/*", "lectures/*/*.md"]

html_theme = "furo"
html_title = f"dlkit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"  # its contrast passes on white
highlight_language = "default"
smartquotes_action = "D"  # dashes; quotes stay, because "classification" is a Python string

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
_SIGN = re.compile(r"((?<!\S)\*\*(?=\S)[^*]+(?<=\S)\*\*(?!\w))|[*|\\]|_\b")  # bold stays
_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?$")


def _words(text: str) -> str:
    """Makes plain words and `code` safe for reStructuredText: its other signs are letters here."""
    parts = re.split(r"(`+)(.+?)\1", text, flags=re.DOTALL)
    done = ""
    for plain, code in zip(parts[::3], [*parts[2::3], ""], strict=True):
        done += "\\ " * (bool(done) and plain[:1].isalnum()) + _SIGN.sub(lambda m: m[0] if m[1] else "\\" + m[0], plain)
        if code:
            done += f":py:obj:`{code}`" if _NAME.match(code) else f"``{code}``"
    return done


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


_FROM_THE_ROOT = {
    "quickstart": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "saved_models": "saved_models/README.md",
}
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def _source(app, name: str, text: list[str]) -> None:
    """Reads a page that lives outside of docs/ and mends links that lead out of it."""
    root = Path(app.srcdir).parent
    home = (Path(app.srcdir) / name).parent
    if name in _FROM_THE_ROOT:
        file = root / _FROM_THE_ROOT[name]
        app.env.note_dependency(str(file))
        text[0], home = file.read_text(encoding="utf-8"), file.parent
        if name == "quickstart":
            text[0] = text[0].replace("# dlkit\n", "# Quickstart\n", 1)
    pages = {(root / file).resolve(): Path(app.srcdir, f"{page}.md") for page, file in _FROM_THE_ROOT.items()}

    def mended(link: re.Match[str]) -> str:
        file = (home / link[1]).resolve()
        path = os.path.relpath(pages.get(file, file), (Path(app.srcdir) / name).parent)
        return f"]({path}{link[2] or ''})"

    text[0] = _LINK.sub(mended, text[0])


def _signature(app, what, name, obj, options, signature, returns) -> tuple[str | None, str | None] | None:
    """Keras wraps `__new__` of layers, which hides the arguments of `__init__`."""
    if what == "class" and signature == "(*args, **kwargs)":
        found = sphinx.util.inspect.signature(obj.__init__, bound_method=True)
        return sphinx.util.inspect.stringify_signature(
            found, show_return_annotation=False, short_literals=True, unqualified_typehints=True
        ), None
    return None


def _complete(app, env) -> None:
    """Warns, and so fails a strict build, if a public function or class has no entry in the reference."""
    domain = env.domains.python_domain
    for name in domain.modules:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if (inspect.isclass(value) or inspect.isfunction(value)) and f"{name}.{public}" not in domain.objects:
                logging.getLogger(__name__).warning("%s.%s is public and not in the reference", name, public)


def setup(app) -> None:
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon
    app.connect("source-read", _source)
    app.connect("env-check-consistency", _complete)
