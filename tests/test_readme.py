"""The README's Python runs as it stands, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

from dlkit.cli import COMMANDS

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs_and_is_short(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 20
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"'accuracy': ([\d.]+)", done.stdout)[1])
    assert accuracy >= 0.97
    assert (tmp_path / "saved_models" / "readme" / "1" / "saved_model.pb").is_file()


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"(?:^|&& )\s*dlkit (\w+)", README.read_text(), re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)
