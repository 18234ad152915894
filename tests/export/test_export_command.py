"""dlkit export refuses what does not go together before it loads the run, and tells what the run was."""

import json
from types import SimpleNamespace

import pytest

from dlkit import _commands
from dlkit._errors import InputError
from dlkit.train import Recipe

GIVEN = {
    "name": "",
    "saved_models": "saved_models",
    "version": 0,
    "optimize": "fold",
    "precision": "float32",
    "format": "saved_model",
    "data": "",
    "calibrate": False,
}
WRONG = {
    "an unknown form": ({"format": "onx"}, r"unknown format 'onx'; did you mean 'onnx'"),
    "int8 without images": ({"format": "litert", "precision": "int8"}, r"--precision int8 needs --data FOLDER"),
    "calibration without images": ({"calibrate": True}, r"--calibrate needs --data FOLDER"),
    "another form, not folded": (
        {"optimize": "freeze", "format": "onnx"},
        r"--optimize freeze goes with --format saved_model",
    ),
    "calibration of another form": (
        {"calibrate": True, "format": "onnx", "data": "photos"},
        r"--calibrate goes with --format saved_model",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused_first(case, tmp_path):
    change, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        _commands.export(str(tmp_path / "no run"), **(GIVEN | change))


def test_the_model_card_gets_recipe_data_and_metrics_of_the_run(tmp_path):
    held = SimpleNamespace(recipe=Recipe())
    data = {"name": "photos", "items": 3, "fingerprint": "abc"}
    (tmp_path / "recipe.json").write_text(json.dumps({"data": data}))
    (tmp_path / "summary.json").write_text(
        json.dumps({"best": {"epoch": 1}, "final": {"epoch": 2, "val_accuracy": 0.75}})
    )
    about = _commands._about(str(tmp_path), held)
    assert about["recipe"] == Recipe().to_dict()
    assert about["data"] == data
    assert about["metrics"] == {"epoch": 2, "val_accuracy": 0.75}
    assert _commands._about(str(tmp_path / "nothing"), held).keys() == {"recipe", "run"}
