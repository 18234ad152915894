"""The page of a run holds what the run wrote, stands alone and escapes what it shows."""

import json
import re
import xml.etree.ElementTree

import keras
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, load
from dlkit.report import write
from dlkit.train import Recipe, fit


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    train, test = load("digits")
    preprocess = Preprocess(8, channels=1)
    inputs = keras.Input(preprocess.input_shape)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    run_dir = tmp_path_factory.mktemp("report") / "a<b>&c"
    recipe = Recipe(epochs=2, batch=50, optimizer="adam", peak_lr=0.01)
    fit(
        model,
        recipe,
        train.subset(range(100)),
        test.subset(range(50)),
        preprocess=preprocess,
        run_dir=run_dir,
        verbose=False,
    )
    return write(run_dir).read_text()


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
