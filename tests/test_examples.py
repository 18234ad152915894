"""Every example runs with --smoke, as its docstring says."""

import runpy
import sys
from pathlib import Path

import pytest

import dlkit.train

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_with_smoke(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke", "--out", str(tmp_path)])
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        dlkit.train.fast_math(False, verbose=False)  # an example may have asked for it, for the rest of its process
    assert any(tmp_path.iterdir())


def test_every_example_tells_how_to_run_it():
    assert len(EXAMPLES) >= 3
    for path in EXAMPLES:
        assert f"python examples/{path.name} --smoke" in path.read_text()
