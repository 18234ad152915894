"""Files are the old ones or the new ones, also when the writer fails or is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dlkit._files import new_folder, write_bytes, write_json, write_text


def test_a_file_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path):
    path = write_text(tmp_path / "deep" / "a.txt", "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert write_json(path, {"ü": 1}).read_text() == '{\n  "ü": 1\n}\n'


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "v") as folder:
        assert folder.name.startswith(".v.")
        (folder / "x").write_text("1")
        assert not (tmp_path / "v").exists()
    assert (tmp_path / "v" / "x").read_text() == "1"
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "w") as folder:
        (folder / "x").write_text(str(1 / 0))
    assert [p.name for p in tmp_path.iterdir()] == ["v"]
    with pytest.raises(FileExistsError, match="appeared meanwhile"), new_folder(tmp_path / "late"):
        (tmp_path / "late" / "theirs").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["theirs"]
    with pytest.raises(FileExistsError), new_folder(tmp_path / "v"):
        pass


WRITER = """
import itertools, sys
from dlkit._files import write_bytes
for i in itertools.count():
    write_bytes(sys.argv[1], bytes([i % 256]) * 3_000_000)
"""


def test_a_writer_killed_at_any_moment_leaves_one_whole_file(tmp_path):
    path = write_bytes(tmp_path / "a", bytes(3_000_000))
    for wait in (0.15, 0.22, 0.31):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == 3_000_000
        assert content == content[:1] * 3_000_000
