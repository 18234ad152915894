"""The page of a run holds what the run wrote, stands alone and escapes what it shows."""

import json
import re
import xml.etree.ElementTree

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, Standardize, from_arrays, load
from dlkit.data.augment import Affine
from dlkit.report import _pictures, compare, write
from dlkit.report._insight import feature_maps, grad_cam
from dlkit.report._outcome import Outcome, outcome
from dlkit.report._plots import overlay
from dlkit.report._sections import sections
from dlkit.train import Recipe, Run, evaluate, fit, load_run

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


def of_history(folder, *rows, **recipe):
    """A run directory without a model."""
    folder.mkdir(parents=True)
    held = {"recipe": {"epochs": 9, **recipe}, "data": {}, "preprocess": {}, "model": {}, "versions": {}}
    (folder / "recipe.json").write_text(json.dumps(held))
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    return folder


ROW = {"epoch": 1, "loss": 1.5, "mae": 0.5, "val_iou": 0.25, "learning_rate": 0.1, "seconds": 1.0, "waiting": 0.1}


def test_a_loss_that_is_no_number_one_epoch_and_no_validation_draw_a_page(tmp_path):
    lost = {**ROW, "epoch": 2, "loss": float("nan"), "mae": float("inf")}
    for name, rows in (("one", [ROW]), ("lost", [ROW, lost]), ("only", [{**lost, "epoch": 1}])):
        text = write(of_history(tmp_path / name, *rows, task="box")).read_text()
        assert text.count("<svg") == 5
        assert "<!-- error (fraction of the picture) -->" in text  # matplotlib notes its texts
        assert "<!-- validation -->" in text
        assert "<!-- 1 -->" in text
        assert "<!-- 0.96" not in text


DAMAGED = {
    "no JSON": ("recipe.json", "{", "is damaged"),
    "a list": ("recipe.json", "[]", "is damaged"),
    "a part missing": ("recipe.json", '{"recipe": {}}', "data, preprocess, model, versions is missing"),
    "a row that is cut off": ("history.csv", "epoch,loss\n1,1.5\n2\n", "is damaged"),
    "a column missing": ("history.csv", "epoch,loss\n1,1.5\n", "learning_rate, seconds, waiting is missing"),
    "no row": ("history.csv", "epoch,loss\n", "no finished epoch"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_run_is_named(case, tmp_path):
    file, text, message = DAMAGED[case]
    folder = of_history(tmp_path / "run", ROW)
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=message):
        write(folder)


NAMES = ("US$", "$x^$ y", "_hidden $\\foo$", "\u732b", "n" * 300)


def test_names_of_classes_and_runs_are_text_whatever_is_in_them():
    found = Outcome(np.eye(5), np.array([1, 1, 2, 3, 4]), NAMES)
    assert _pictures.confusion(found).startswith("<img")  # formulas, missing letters, no room: warnings and errors
    text = overlay("Loss", "epoch", "loss", {name: ([1, 2], [1.0, 2.0]) for name in NAMES})
    for shown in ("US$", "$x^$ y", "_hidden $\\foo$", "?", "n" * 39 + "\u2026"):
        assert f"<!-- {shown} -->" in text


def run_of(model, preprocess, classes=None, **recipe):
    return Run(model, preprocess, classes, Recipe(**recipe), None)


def test_tables_have_pages_of_classes_and_of_targets():
    x = np.random.default_rng(0).normal(size=(30, 3)).astype("float32")
    inputs = keras.Input((3,))
    source = from_arrays(x, np.arange(30) % 3, classes=["a", "b", "c"])
    parts = sections(run_of(keras.Model(inputs, keras.layers.Dense(3)(inputs)), Standardize.of(source)), source)
    assert "Per class" in " ".join(parts)
    source = from_arrays(x, np.tile(x, 2))
    model = keras.Model(inputs, keras.layers.Dense(6)(inputs))
    parts = sections(run_of(model, Standardize.of(source), task="regression"), source)
    assert "the first 4 of 6 targets" in " ".join(parts)
    assert " ".join(parts).count("<img") == 4


def test_a_thousand_classes_are_folded_away():
    found = Outcome(np.full((4, 50), 0.02), np.arange(4), tuple(map(str, range(50))))
    from dlkit.report._sections import _classes

    assert "<summary>50 classes</summary>" in _classes(found)
    assert "<details>" not in _classes(Outcome(np.eye(2), np.arange(2), ("a", "b")))


@pytest.mark.parametrize("kind", ["a Sequential read from a file", "a model in a model"])
def test_the_maps_are_those_of_the_graph_that_answers(kind, tmp_path):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.ReLU()])
    if kind == "a model in a model":
        inputs = keras.Input((8, 8, 1))
        model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(inner(inputs))))
    else:
        model = keras.Sequential([*inner.layers, layers.GlobalAveragePooling2D(), layers.Dense(2)])
        model.build((None, 8, 8, 1))
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    picture = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("float32")
    assert grad_cam(model, picture, [0]).shape == (1, 6, 6)
    (_, maps), *_ = feature_maps(model, picture[0])
    np.testing.assert_allclose(maps, inner(picture, training=False)[0], atol=1e-6)
