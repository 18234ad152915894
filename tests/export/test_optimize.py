"""Folding and freezing keep the function; what cannot be folded exactly stays as it is."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit import layers
from dlkit._errors import InputError
from dlkit.export import _fold, _optimize, _saved_model
from dlkit.export._signatures import trace
from dlkit.models._blocks import GroupedConv2D

L = keras.layers
X = np.random.default_rng(1).normal(size=(4, 10, 10, 3)).astype("float32")


def conv_norm(convolution, norm):
    inputs = keras.Input((10, 10, 3))
    return keras.Model(inputs, norm(convolution(inputs)))


def depth_then_norm(norm):
    return lambda: conv_norm(L.DepthwiseConv2D(3, depth_multiplier=2), norm)


FOLDED = {
    "convolution_with_bias": lambda: conv_norm(L.Conv2D(4, 3), L.BatchNormalization()),
    "convolution_without_bias": lambda: conv_norm(L.Conv2D(4, 3, use_bias=False), L.BatchNormalization()),
    "strided_groups": lambda: conv_norm(L.Conv2D(6, 3, strides=2, groups=3, padding="same"), L.BatchNormalization()),
    "groups_of_a_builder": lambda: conv_norm(GroupedConv2D(6, 3, groups=3), L.BatchNormalization()),
    "without_scale_and_offset": lambda: conv_norm(L.Conv2D(4, 1), L.BatchNormalization(scale=False, center=False)),
    "depthwise": depth_then_norm(L.BatchNormalization()),
    "dense": lambda: conv_norm(L.Dense(4), L.BatchNormalization()),
    "dlkit": lambda: conv_norm(L.Conv2D(4, 3, use_bias=False), layers.BatchNorm()),
    "dlkit_without_scale": lambda: conv_norm(L.Conv2D(4, 3), layers.BatchNorm(scale=False)),
}


@pytest.mark.parametrize("build", FOLDED.values(), ids=FOLDED)
def test_a_normalisation_behind_a_linear_layer_disappears_into_its_weights(build, randomised):
    model = randomised(build())
    folded = _fold.fold(model)
    assert (folded.batch_norms, folded.kept) == (1, ())
    assert not any(_fold.is_batch_norm(layer) for layer in folded.model.layers)
    np.testing.assert_allclose(folded.model(X, training=False), model(X, training=False), atol=2e-5)


def test_the_folded_weights_are_those_worked_out_in_float64(randomised):
    model = randomised(conv_norm(L.Conv2D(4, 3), L.BatchNormalization(epsilon=0.01)))
    gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in model.layers[2].get_weights())
    kernel, bias = (np.asarray(w, np.float64) for w in model.layers[1].get_weights())
    scale = gamma / np.sqrt(variance + 0.01)
    found = _fold.fold(model).model.layers[1].get_weights()
    np.testing.assert_array_equal(found[0], (kernel * scale).astype(np.float32))
    np.testing.assert_array_equal(found[1], (scale * (bias - mean) + beta).astype(np.float32))


def activated():
    return conv_norm(L.Conv2D(4, 3, activation="relu"), L.BatchNormalization())


def read_twice():
    inputs = keras.Input((10, 10, 3))
    x = L.Conv2D(4, 3)(inputs)
    return keras.Model(inputs, L.Add()([x, L.BatchNormalization()(x)]))


def shared_convolution():
    a = keras.Input((10, 10, 3))
    convolution = L.Conv2D(4, 3)
    return keras.Model(a, L.Add()([L.BatchNormalization()(convolution(a)), convolution(L.ReLU()(a))]))


def other_axis():
    return conv_norm(L.Conv2D(4, 3), L.BatchNormalization(axis=1))


def called_by_name():
    return conv_norm(L.Conv2D(4, 3), lambda x: L.BatchNormalization()(inputs=x))


@pytest.mark.parametrize("build", [activated, read_twice, shared_convolution, other_axis, called_by_name])
def test_what_cannot_be_folded_exactly_is_kept(build, randomised):
    model = randomised(build())
    folded = _fold.fold(model)
    assert folded.batch_norms == 0
    assert len(folded.kept) == 1
    np.testing.assert_allclose(folded.model(X, training=False), model(X, training=False), atol=1e-6)


def test_models_inside_a_model_are_folded_too(randomised):
    inner = conv_norm(L.Conv2D(4, 3), L.BatchNormalization())
    model = randomised(keras.Sequential([keras.Input((10, 10, 3)), inner, L.Flatten(), L.Dense(2)]))
    functional = keras.Model(model.inputs[0], model.outputs[0])
    folded = _fold.fold(functional)
    assert folded.batch_norms == 1
    np.testing.assert_allclose(folded.model(X, training=False), model(X, training=False), atol=2e-5)


def test_freezing_leaves_no_variable_and_the_same_outputs(tiny):
    model = tiny()
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 12, 12, 3)), tf.float32)
    core = trace(model, (12, 12, 3), ("logits",))
    frozen = _optimize.freeze(core)
    assert not frozen.function.graph.variables
    assert len(frozen.weights) == len(core.weights) == len(model.weights)
    np.testing.assert_allclose(frozen(x)["logits"], core(x)["logits"], atol=1e-6)


def test_timing_the_cores_of_many_exports_warns_of_nothing(tiny, caplog):
    cores = tuple(trace(tiny(), (12, 12, 3), ("logits",)) for _ in range(8))
    assert all(milliseconds > 0 for milliseconds in _optimize.latencies(cores, np.zeros((1, 12, 12, 3), np.float32)))
    assert not caplog.text  # TensorFlow counts the functions that are traced at a call


def test_a_frozen_export_holds_its_weights_once_and_in_the_graph(export, tiny, preprocess):
    folder = export(tiny(), preprocess, list("abcde"), optimize="freeze")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"]["parameters"] == 653
    assert manifest["rewrites"]["difference"] < 1e-5
    assert manifest["rewrites"]["milliseconds_after"] > 0
    assert sum(file.stat().st_size for file in (folder / "variables").glob("*.data-*")) < 200


def test_weights_that_would_fill_the_memory_as_constants_are_refused(export, tiny, preprocess, monkeypatch):
    monkeypatch.setattr(_saved_model, "LARGEST_FROZEN", 1000)
    with pytest.raises(InputError, match=r"would need about 0 GB at load; use optimize='fold'"):
        export(tiny(), preprocess, list("abcde"), optimize="freeze")
