"""Every builder with every norm, and every preprocessing, exported and verified (slim copies)."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit import models
from dlkit.data import Preprocess
from dlkit.train.precision import arithmetic

LABELS = ["one", "two", "three"]

BUILDERS = {
    "cnn": (models.cnn, {"input_shape": (16, 16, 3)}),
    "alexnet": (models.alexnet, {"input_shape": (67, 67, 3), "width": 0.0625}),
    "vgg": (models.vgg, {"config": "A", "input_shape": (32, 32, 3), "width": 0.0625}),
    "resnet": (models.resnet, {"depth": 18, "input_shape": (32, 32, 3), "width": 0.125}),
    "resnet_v2": (models.resnet, {"depth": 18, "version": "v2", "input_shape": (32, 32, 3), "width": 0.125}),
    "resnet_cifar": (models.resnet_cifar, {"depth": 8, "input_shape": (16, 16, 3), "width": 0.5}),
}
NORMS = ("none", "batch", "group", "layer", "instance", "rms")


def build(name, randomised, **more):
    builder, given = BUILDERS[name]
    keras.utils.set_random_seed(0)
    if more.get("norm") == "group":
        from functools import partial

        from dlkit.layers import GroupNorm

        more["norm"] = partial(GroupNorm, groups=2)
    return randomised(builder(classes=len(LABELS), **given, **more))


def rows(folder):
    report = json.loads((folder / "verification.json").read_text())
    assert report["ok"]
    return {check["name"]: check for check in report["checks"]}


def side(name):
    return BUILDERS[name][1]["input_shape"][0]


def test_a_residual_network_of_the_package_folds_exports_and_verifies(export, randomised):
    folder = export(build("resnet_cifar", randomised), Preprocess(16), LABELS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rewrites"]["folded_batch_norms"] == 7
    assert manifest["rewrites"]["kept_batch_norms"] == []
    assert rows(folder)["serving_default probabilities of the evaluation"]["difference"] < 1e-5


def test_an_export_after_fast_math_is_still_compared_in_float32(export, randomised):
    with arithmetic("bfloat16"):
        folder = export(build("resnet_cifar", randomised), Preprocess(16), LABELS)
    assert rows(folder)["serving_default probabilities of the evaluation"]["difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore::dlkit.models.SmallMapWarning")
def test_every_builder_with_every_norm_exports_and_verifies(name, norm, export, randomised):
    model = build(name, randomised, norm=norm)
    before = [np.copy(weight) for weight in model.get_weights()]
    folder = export(model, Preprocess(side(name)), LABELS)
    assert rows(folder)["top-1 agreement with the evaluation"]["ok"]
    for old, new in zip(before, model.get_weights(), strict=True):  # statistics of the user's model untouched
        np.testing.assert_array_equal(old, new)


PREPROCESS = {
    "no_preprocessing": lambda side: None,
    "resize": lambda side: Preprocess(side),
    "crop": lambda side: Preprocess(side, resize=side + 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PREPROCESS)
@pytest.mark.parametrize("name", ["vgg", "resnet_v2", "resnet_cifar"])
@pytest.mark.filterwarnings("ignore::dlkit.models.SmallMapWarning")
def test_without_optimisation_every_preprocessing_is_bit_equal_to_predict(name, kind, export, randomised):
    model = build(name, randomised, norm="batch", classifier_activation="softmax")
    folder = export(model, PREPROCESS[kind](side(name)), LABELS, optimize=None)
    found = rows(folder)
    assert found["tensors probabilities"]["limit"] == found["tensors probabilities"]["difference"] == 0.0
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    served = tf.saved_model.load(str(folder)).signatures["tensors"](tensors=x)["probabilities"]
    np.testing.assert_allclose(served, model(x, training=False), atol=1e-6)


def test_layers_that_leak_training_to_those_behind_them_do_not_change_the_answer(export, randomised):
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Resizing(9, 9)(keras.layers.RandomFlip(seed=1)(inputs))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    model = randomised(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x))))
    statistics = [np.copy(weight) for weight in model.non_trainable_weights]
    folder = export(model, Preprocess(12), LABELS)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 12, 12, 3), np.uint8)
    served = tf.saved_model.load(str(folder)).signatures["images"](images=pixels)["logits"]
    expected = model(Preprocess(12).from_images(tf.constant(pixels)), training=False)
    np.testing.assert_allclose(served, expected, atol=1e-5)
    for old, new in zip(statistics, model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_a_multilayer_perceptron_on_rows_exports_without_preprocessing(export, randomised):
    folder = export(randomised(models.mlp((16, 8), classes=3, input_shape=(6,), norm="batch")), None, LABELS)
    assert "features" in json.loads((folder / "manifest.json").read_text())["signatures"]


@pytest.mark.slow
def test_an_ensemble_answers_its_mean_and_its_disagreement(export, randomised):
    members = [build("cnn", randomised), build("cnn", randomised, norm="batch")]
    members[1].set_weights([0.7 * weight for weight in members[1].get_weights()])
    model = models.ensemble(members)
    folder = export(model, Preprocess(16), LABELS)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    served = tf.saved_model.load(str(folder)).signatures["images"](images=pixels)
    expected = model(Preprocess(16).from_images(tf.constant(pixels)), training=False)
    for name in ("probabilities", "disagreement"):
        np.testing.assert_allclose(served[name], expected[name], atol=1e-5)


@pytest.mark.slow
def test_a_localizer_answers_boxes(export, randomised):
    model = randomised(models.localizer(build("resnet_cifar", randomised, include_top=False)))
    folder = export(model, Preprocess(16), None, task="box")
    assert rows(folder)["serving_default boxes"]["difference"] < 1e-5
