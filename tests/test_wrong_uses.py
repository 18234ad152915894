"""Wrong uses of the API: each answer says what was received, what is allowed, and the nearest valid choice."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from dlkit import data, export, initializers, layers, lectures, models, report, train, tune
from dlkit._errors import InputError
from dlkit.data import augment
from dlkit.train import Recipe, losses, schedules, stopping


def small(classes=10, side=8):
    inputs = keras.Input((side, side, 1))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs)))


def digits(count=20):
    return data.load("digits")[0].subset(range(count))


PREPROCESS = data.Preprocess(8, channels=1)
X = keras.Input((8, 8, 6))


def fit(model=None, recipe=None, source=None, validation=None, preprocess=PREPROCESS, folder="run"):
    return train.fit(
        model or small(), recipe or Recipe(epochs=1), source or digits(), validation, preprocess=preprocess,
        run_dir=folder, verbose=False,
    )  # fmt: skip


def two_classes():
    return data.from_arrays(np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 0, 1], classes=["a", "b"])


# name -> (what is done in an empty folder, words of the answer in their order)
WRONG = {
    # layers
    "groups that do not divide": (lambda: layers.GroupNorm(groups=4)(X), ["4", "6"]),
    "the batch axis": (lambda: layers.RMSNorm(axis=0)(X), ["axis", "0"]),
    "an unknown norm": (lambda: layers.norm("batchnorm2"), ["batchnorm2", "did you mean 'batch"]),
    "an unknown activation": (lambda: layers.activation("swich"), ["swich", "did you mean 'swish'"]),
    "an even window": (lambda: layers.LocalResponseNorm(size=4), ["4", "odd"]),
    "no pieces": (lambda: layers.Maxout(8, pieces=0), ["0"]),
    "a share above one": (lambda: layers.StochasticDepth(1.5), ["1.5"]),
    "an unknown initializer": (lambda: initializers.get("glorott"), ["glorott", "did you mean"]),
    # models
    "an unknown model": (lambda: models.create("resnet5O"), ["resnet5O", "did you mean 'resnet50'"]),
    "an unknown argument": (lambda: models.create("vgg16", clases=10), ["clases", "did you mean 'classes'"]),
    "a depth that does not exist": (lambda: models.resnet(51), ["51", "50"]),
    "a depth beside 6n+2": (lambda: models.resnet_cifar(21), ["21", "20"]),
    "an input that is too small": (lambda: models.vgg("D", input_shape=(16, 16, 3)), ["16", "32"]),
    "a shape without channels": (lambda: models.resnet(18, input_shape=(64, 64)), ["(64, 64)"]),
    "no classes": (lambda: models.resnet_cifar(8, classes=0), ["classes", "0"]),
    "weights that are not there": (lambda: models.load_weights(small(), "none.safetensors"), ["none.safetensors"]),
    "weights that are a text": (lambda: (_write("a.pth"), models.load_weights(models.resnet(18), "a.pth")), ["a.pth"]),
    "an empty ensemble": (lambda: models.ensemble([]), ["ensemble"]),
    # data
    "no folder": (lambda: data.from_folder("nowhere"), ["nowhere"]),
    "an empty folder": (lambda: (os.mkdir("empty"), data.from_folder("empty")), ["empty"]),
    "an unknown data set": (lambda: data.load("digitz"), ["digitz", "did you mean 'digits'"]),
    "as many labels as not": (lambda: data.from_arrays(np.zeros((3, 8, 8, 1), np.uint8), [0, 1]), ["3", "2"]),
    "labels out of range": (
        lambda: data.from_arrays(np.zeros((2, 8, 8, 1), np.uint8), [0, 7], classes=["a", "b"]), ["7"]
    ),
    "float pictures": (lambda: data.from_arrays(np.zeros((2, 8, 8, 1)), [0, 1]), ["uint8"]),
    "a split beyond the whole": (lambda: digits().split(0.8, 0.4), ["0.8", "0.4"]),
    "an input of no size": (lambda: data.Preprocess(0), ["0"]),
    "a negative spread": (lambda: data.Preprocess(8, std=-1.0), ["std"]),
    "an unknown interpolation": (lambda: data.Preprocess(8, interpolation="bicubik"), ["bicubik", "bicubic"]),
    "an angle that is a word": (lambda: augment.Affine(rotate="ten"), ["rotate", "ten"]),
    "a probability above one": (lambda: augment.MixUp(0.2, 1.5), ["1.5"]),
    "a window beyond the picture": (lambda: augment.RandomResizedCrop(scale=(0.5, 2.0)), ["2.0"]),
    "a picture that is not there": (lambda: augment.preview(digits(), (), index=99), ["99"]),
    "an operation that is none": (
        lambda: data.train_pipeline(digits(), PREPROCESS, ["flip"], batch=4, seed=0), ["flip"]
    ),
    "a batch of nothing": (lambda: data.train_pipeline(digits(), PREPROCESS, (), batch=0, seed=0), ["0"]),
    # training
    "an unknown field": (lambda: Recipe().override({"epoch": "3"}), ["epoch", "did you mean 'epochs'"]),
    "a momentum of two": (lambda: Recipe(momentum=2.0), ["momentum", "from 0 to below 1", "2.0"]),
    "an unknown optimizer": (lambda: fit(recipe=Recipe(optimizer="adamm")), ["adamm", "did you mean 'adam"]),
    "an unknown schedule": (lambda: schedules.get("cosin", 0.1, 10, 0), ["cosin", "did you mean 'cosine'"]),
    "an unknown loss": (lambda: losses.get("cross_entropie"), ["cross_entropie", "did you mean 'cross_entropy'"]),
    "an unknown measure": (
        lambda: fit(recipe=Recipe(epochs=1, stop=(stopping.Patience("val_acuracy", patience=2),))), ["val_acuracy"]
    ),
    "a model for other classes": (lambda: fit(model=small(3)), ["3", "10"]),
    "a model for other pictures": (lambda: fit(model=small(10, 12)), ["12", "8"]),
    "validation of other classes": (lambda: fit(validation=two_classes()), ["validation classes"]),
    "a run of another recipe": (
        lambda: (fit(), fit(recipe=Recipe(epochs=2))), ["recipe.epochs: 1 there, 2 now"]
    ),
    "a run that has not ended": (lambda: (os.mkdir("r"), train.load_run("r")), ["r is no run directory"]),
    "an unknown view": (
        lambda: train.evaluate(small(), digits(), preprocess=PREPROCESS, tta="flips"), ["flips", "did you mean 'flip'"]
    ),
    "one fold": (
        lambda: train.k_fold(small, Recipe(epochs=1), digits(), k=1, preprocess=PREPROCESS, run_dir="k"), ["1"]
    ),
    # search
    "an unknown oracle": (
        lambda: _search(oracle="bobh"), ["bobh", "did you mean 'bohb'"],
    ),
    "a budget below one training": (lambda: _search(epochs_budget=1), ["epochs_budget=1"]),
    "a space of unknown fields": (
        lambda: _search(space=lambda hp: {"recipe": {"peak_rl": hp.Float("a", 0.1, 1.0)}}), ["peak_rl", "peak_lr"]
    ),
    "a factor below two": (lambda: tune.Asha("val_accuracy", factor=1), ["factor=1"]),
    "a share outside 0..1": (lambda: tune.Bohb("val_accuracy", density_fraction=2.0), ["density_fraction", "2.0"]),
    # export and reports
    "labels that do not count": (
        lambda: export.saved_model(small(), PREPROCESS, ["a"], "out"), ["1", "10"]
    ),
    "an unknown optimization": (
        lambda: export.saved_model(small(), PREPROCESS, [str(i) for i in range(10)], "out", optimize="folded"),
        ["folded", "fold"],
    ),
    "a model for another input": (
        lambda: export.saved_model(small(), data.Preprocess(9, channels=1), [str(i) for i in range(10)], "out"), ["9"]
    ),
    "no export": (lambda: export.verify("nothing"), ["nothing"]),
    "no pictures": (lambda: export.predict("nothing", []), ["nothing"]),
    "a report of nothing": (lambda: report.write("nothing"), ["nothing", "recipe.json"]),
    "a search that is none": (lambda: report.write_search("nothing"), ["nothing", "search.json"]),
    "one run to compare": (lambda: report.compare(["a"]), ["2 to 8", "1"]),
    "an unknown experiment": (lambda: lectures.run("desent", quick=True), ["desent", "did you mean 'descent'"]),
}  # fmt: skip


def _write(name):
    with open(name, "w") as file:
        file.write("hello\n")


def _search(space=lambda hp: {"recipe": {"peak_lr": hp.Float("a", 0.1, 1.0)}}, epochs_budget=4, **kw):
    return tune.search(
        lambda **k: small(), space, Recipe(epochs=2), digits(), digits(), preprocess=PREPROCESS,
        epochs_budget=epochs_budget, directory="search", verbose=False, **kw,
    )  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_the_answer_names_what_was_wrong(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    action, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    place = -1
    for word in words:
        assert word in text, text
        place = max(place, text.index(word))
    assert len(text) < 700
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_a_backend_that_cannot_train_says_so():
    code = (
        "import keras, dlkit.data as d, dlkit.train as t, dlkit.models as m\n"
        "model, source = m.mlp(classes=10, input_shape=(8, 8, 1)), d.load('digits')[0]\n"
        "t.fit(model, t.Recipe(), source, preprocess=d.Preprocess(8, channels=1), run_dir='run')"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "set KERAS_BACKEND=tensorflow before Python starts" in done.stderr.splitlines()[-1]
