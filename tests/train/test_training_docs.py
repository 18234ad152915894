"""The Python of docs/training.md runs as it stands, in its order."""

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.slow
def test_the_snippets_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) >= 6
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["result"].metrics["accuracy"] > 0.5  # chance is 0.1
    assert (tmp_path / "lr.png").is_file()
    assert len(names["folds"].results) == 3
    assert "+-" in capsys.readouterr().out


def test_the_examples_of_the_page_print_what_it_says():
    assert doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
