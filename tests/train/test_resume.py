"""A checkpoint is good, or it is recognised as damaged and the one before it is used."""

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.train import DamagedCheckpointWarning, resume


def variables(fill: float = 0.0, size: int = 3):
    half = keras.Variable(np.full((2,), fill), dtype="bfloat16", name="half")
    return [
        keras.Variable(np.full((size, 2), fill), name="kernel"),
        half,
        keras.Variable(int(fill), dtype="int32", name="i"),
    ]


def values(found):
    return [np.asarray(variable).astype("float64").tolist() for variable in found]


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved, read = variables(1.5), variables(0.0)
    resume.save(tmp_path, 7, saved, {"step": 7})
    assert resume.restore(tmp_path, read) == {"step": 7}
    assert values(read) == values(saved)


def test_an_empty_folder_holds_no_checkpoint(tmp_path):
    assert resume.restore(tmp_path, variables()) is None
    assert resume.restore(tmp_path / "absent", variables()) is None


def test_only_the_newest_are_kept_and_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(1, 6):
        resume.save(tmp_path, step, variables(step), {"step": step})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", *(f"step_{step:010d}.ckpt" for step in (3, 4, 5))]


def test_one_that_is_kept_alone_replaces_a_later_one(tmp_path):
    for step in (3, 7, 5):
        resume.save(tmp_path, step, variables(step), {"step": step}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000000005.ckpt"]


def empty(content):
    return b""


def half(content):
    return content[: len(content) // 2]


def flipped_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [empty, half, flipped_bit])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    resume.save(tmp_path, 1, variables(1), {"step": 1})
    newest = resume.save(tmp_path, 2, variables(2), {"step": 2})
    newest.write_bytes(damage(newest.read_bytes()))
    read = variables(0)
    with pytest.warns(DamagedCheckpointWarning, match=newest.name):
        assert resume.restore(tmp_path, read) == {"step": 1}
    assert values(read) == values(variables(1))


def test_damage_everywhere_is_an_error_and_never_a_silent_restart(tmp_path):
    path = resume.save(tmp_path, 1, variables(1), {"step": 1})
    path.write_bytes(b"")
    read = variables(5)
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(InputError, match="every checkpoint"):
        resume.restore(tmp_path, read)
    assert values(read) == values(variables(5))


def test_the_checkpoint_of_other_variables_is_refused_and_nothing_is_assigned(tmp_path):
    resume.save(tmp_path, 1, variables(1), {"step": 1})
    other = variables(5, size=4)
    with pytest.raises(InputError, match="shape"):
        resume.restore(tmp_path, other)
    assert values(other) == values(variables(5, size=4))
    with pytest.raises(InputError, match="another model or optimizer"):
        resume.restore(tmp_path, other[:2])
