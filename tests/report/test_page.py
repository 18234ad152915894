"""The page of a run holds what the run wrote, stands alone and escapes what it shows."""

import json
import re
import xml.etree.ElementTree

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays, load
from dlkit.data.augment import Affine
from dlkit.report import compare, write
from dlkit.report._insight import grad_cam
from dlkit.report._outcome import Outcome, outcome
from dlkit.train import Recipe, evaluate, fit, load_run

PREPROCESS = Preprocess(8, channels=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    train, test = load("digits")
    inputs = keras.Input(PREPROCESS.input_shape)
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    run_dir = tmp_path_factory.mktemp("report") / "a<b>&c"
    recipe = Recipe(epochs=2, batch=50, optimizer="adam", peak_lr=0.01, augment=(Affine(rotate=10),))
    part = test.subset(range(50))
    fit(model, recipe, train.subset(range(100)), part, preprocess=PREPROCESS, run_dir=run_dir, verbose=False)
    return run_dir, part


@pytest.fixture(scope="module")
def page(run):
    return write(run[0]).read_text()


def test_the_page_shows_curves_recipe_data_and_versions(page):
    for text in ("Loss", "Accuracy", "Learning rate", "seconds", "peak_lr", "0.01", "fingerprint", "tensorflow"):
        assert text in page
    assert page.count("<svg") == 4


def test_every_figure_is_well_formed(page):
    for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        xml.etree.ElementTree.fromstring(figure)


def test_the_page_loads_nothing_and_escapes_names(page):
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.replace("http://www.w3.org", ""))
    assert "<script" not in page
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"recipe.json is missing"):
        write(tmp_path)


def test_the_page_shows_what_a_criterion_measured_and_why_the_run_stopped(tmp_path):
    row = {"epoch": 1, "step": 2, "loss": 1.5, "gradient_norm": 0.25, "weight_change": 0.01, "val_loss": 1.25}
    row |= {"learning_rate": 0.1, "seconds": 1.0, "waiting": 0.1}
    held = {"recipe": {"epochs": 9}, "data": {}, "preprocess": {}, "model": {}, "versions": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(held))
    (tmp_path / "history.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    (tmp_path / "summary.json").write_text(json.dumps({"stopped": "the gradient norm 0.25 is < 0.3", "final": row}))
    text = write(tmp_path).read_text()
    assert "stopped early: the gradient norm 0.25 is &lt; 0.3" in text
    assert "model.keras holds the weights of epoch 1: val_loss 1.2500" in text
    assert "Gradient norm" in text
    assert "Relative weight change" in text
    (tmp_path / "summary.json").unlink()
    assert "stopped early" not in write(tmp_path).read_text()


def test_with_data_the_page_shows_mistakes_calibration_and_what_the_network_looks_at(run):
    text = write(*run).read_text()
    for title in ("Per class", "worst mistakes", "Grad-CAM", "First filters", "Feature maps", "Augmentation"):
        assert title in text
    for alt in ("confusion matrix", "calibration curve", "worst mistakes", "Grad-CAM", "augmentation preview"):
        assert f'<img alt="{alt}" src="data:image/png;base64,' in text
    wrong = from_arrays(np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 0, 1], classes=["a", "b"])
    with pytest.raises(InputError):
        write(run[0], wrong)


def test_the_figures_of_the_page_are_those_of_evaluate(run):
    held = load_run(run[0])
    found = outcome(held.model, run[1], held.preprocess)
    measured = evaluate(held.model, run[1], preprocess=held.preprocess)
    assert np.trace(found.confusion()) / len(run[1]) == measured["accuracy"]
    given = found.probabilities[np.arange(50), found.targets]
    assert -np.log(given).mean() == pytest.approx(measured["loss"], rel=1e-6)
    right = [row["recall"] * row["items"] for row in found.per_class() if row["items"]]
    assert sum(right) / 50 == pytest.approx(measured["accuracy"])


def test_the_calibration_error_is_that_of_its_definition():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.9, 0.1], [0.35, 0.65]])
    found = Outcome(probabilities, np.array([0, 1, 0, 1]), ("a", "b"))
    rows, error = found.calibration()
    # bins of 1/15: 0.9 and 0.95 lie in 13/15..14/15 and 14/15..1, 0.65 in 9/15..10/15
    assert [row["share"] for row in rows] == [0.25, 0.25, 0.5]
    assert error == pytest.approx(0.25 * 0.35 + 0.25 * 0.1 + 0.5 * 0.45)
    assert found.worst(3).tolist() == [1]
    assert found.per_class()[0] == {"class": "a", "items": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8}


def test_grad_cam_finds_the_only_place_that_counts():
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(keras.layers.GlobalAveragePooling2D()(maps)))
    model.layers[1].set_weights([np.array([[[[1.0, -1.0]]]], "float32")])
    model.layers[-1].set_weights([np.eye(2, dtype="float32")])
    picture = np.zeros((1, 8, 8, 1), "float32")
    picture[0, 2, 5] = 1.0
    cam = grad_cam(model, picture, [0])
    assert np.argwhere(cam).tolist() == [[0, 2, 5]]
    assert not grad_cam(model, picture, [1]).any()  # the other class is spoken against there


def test_a_comparison_shows_every_run_and_what_differs(run, tmp_path):
    rows = "epoch,step,loss,val_loss,val_accuracy,learning_rate,seconds,waiting\n1,2,1.5,1.25,0.5,0.1,2.0,0.1\n"
    for name, rate in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        held = {"recipe": {"epochs": 9, "peak_lr": rate}, "data": {}, "preprocess": {}, "model": {}, "versions": {}}
        (tmp_path / name / "recipe.json").write_text(json.dumps(held))
        (tmp_path / name / "history.csv").write_text(rows)
    text = compare([tmp_path / "a", tmp_path / "b", run[0]], tmp_path / "page.html").read_text()
    assert "<td>recipe.peak_lr</td><td>0.1</td><td>0.2</td><td>0.01</td>" in text
    assert "a&lt;b&gt;&amp;c" in text
    for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        xml.etree.ElementTree.fromstring(figure)
    with pytest.raises(InputError, match="2 to 8 runs"):
        compare([tmp_path / "a"])
    with pytest.raises(InputError, match="the same run twice"):
        compare([tmp_path / "a", tmp_path / "b" / ".." / "a"])
