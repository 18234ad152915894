"""What a release promises besides its code: a citation of this version, and types that users' checkers see."""

import ast
import importlib
from pathlib import Path

import pytest
import yaml

import dlkit

ROOT = Path(__file__).parents[1]


def test_the_citation_is_complete_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert dlkit.__version__ == citation["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{dlkit.__version__}] - {citation['date-released']}" in changes
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("package", ["export", "testing"])
def test_type_checkers_see_every_name_of_a_lazy_package(package):
    module = importlib.import_module(f"dlkit.{package}")
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    branch = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    exported = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    literal = "*" not in ast.unparse(exported.value)
    seen = {a.asname or (a.name if literal else "") for n in branch.body for a in n.names}
    assert seen == set(module.__all__)


def test_the_wheel_carries_its_types_and_no_tests():
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert (ROOT / "dlkit" / "py.typed").is_file()
    assert "py.typed" in setup.split("[options.package_data]")[1].split("[", 1)[0]
    assert "dlkit*" in setup.split("[options.packages.find]")[1].split("[", 1)[0]
