"""Every experiment of the lectures runs in quick mode, and what must hold at any size holds."""

import inspect
import struct
from pathlib import Path

import pytest

from dlkit import lectures
from dlkit._errors import InputError

EVERYDAY = ("convolution",)  # the others take seconds of tracing each


def cases():
    return [pytest.param(n, marks=() if n in EVERYDAY else pytest.mark.slow) for n in lectures.names()]


@pytest.mark.parametrize("name", cases())
def test_a_quick_run_writes_figures_and_its_exact_claims_hold(name, tmp_path):
    folder = lectures.run(name, quick=True, out=str(tmp_path / name))
    result = lectures.read(folder)
    assert result["claims"]
    assert result["figures"]
    assert [claim for claim in result["claims"] if claim["exact"] and not claim["agrees"]] == []
    for figure in result["figures"]:
        width, height = struct.unpack(">II", (folder / figure).read_bytes()[16:24])
        assert width >= 400
        assert height >= 250
    assert "nan" not in " ".join(claim["measured"] for claim in result["claims"]).lower().split()


@pytest.mark.parametrize("name", lectures.names())
def test_a_script_has_one_shape_and_uses_the_public_api(name):
    script = lectures.load(name)
    source = inspect.getsource(script)
    assert len(source.splitlines()) <= 130
    assert all(getattr(script, field).strip() for field in ("TITLE", "RUSSIAN", "WHERE", "FORMULA", "__doc__"))
    private = [line for line in source.splitlines() if "import" in line and ("dlkit._" in line or "._" in line)]
    assert private == []


def test_the_gallery_holds_every_full_result(tmp_path):
    results = Path(__file__).parents[2] / "docs" / "lectures"
    page = lectures.gallery(results, tmp_path / "lectures.md").read_text()
    for name in lectures.names():
        assert not lectures.read(results / name)["quick"]
        assert lectures.load(name).TITLE in page


def test_wrong_input_names_the_nearest_choice(tmp_path):
    with pytest.raises(InputError, match="did you mean 'descent'"):
        lectures.run("decent", quick=True)
    with pytest.raises(InputError, match="--data FOLDER"):
        lectures.run("degradation", out=str(tmp_path))
    with pytest.raises(InputError, match="must be a folder"):
        lectures.run("descent", data=tmp_path / "none")
    with pytest.raises(InputError, match="no results in"):
        lectures.gallery(tmp_path)
