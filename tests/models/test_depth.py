"""Looped stages and rematerialisation change how a network runs, never what it computes, holds or saves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit import models
from dlkit.models import _resnet_cifar

ARGUMENTS = {
    "v1": {"version": "v1"},
    "v2": {"version": "v2", "shortcut": "B"},
    "bottleneck": {"depth": 29, "block": "bottleneck", "version": "v2"},
    "group": {"norm": "group", "activation": "swish"},
    "plain": {"residual": False, "norm": "none"},
    "drop": {"stochastic_depth": 0.5},
}


IN_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="trains in a tf.function")


def build(kind: str, looped: bool, monkeypatch, **kw) -> keras.Model:
    monkeypatch.setattr(_resnet_cifar, "FLAT", 1 if looped else 36)
    arguments = {"depth": 20, "width": 0.25, "input_shape": (8, 8, 3), **ARGUMENTS[kind], **kw}
    return models.resnet_cifar(**arguments)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    values, places = models.named_weights(source), models.named_weights(target)
    common = [n for n in values if "seed" not in n]
    assert sorted(common) == sorted(n for n in places if "seed" not in n)
    for name in common:
        places[name].assign(values[name].numpy())


def batch(n: int = 4):
    rng = np.random.default_rng(0)
    return tf.constant(rng.normal(size=(n, 8, 8, 3)).astype("float32")), tf.constant(rng.integers(0, 10, n))


def train_step(model: keras.Model) -> tuple[float, dict, dict]:
    """Returns loss, gradients and weights after one step in graph mode, the gradients by name."""
    x, y = batch()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return value, gradients

    before = {n: w.numpy() for n, w in models.named_weights(model).items()}
    value, _ = step(x, y)
    after = {n: w.numpy() for n, w in models.named_weights(model).items()}
    gradients = {n: (before[n] - after[n]) / 0.1 for n in before if "moving" not in n and "seed" not in n}
    return float(value), gradients, {n: after[n] for n in after if "moving" in n}


def assert_close(a: dict, b: dict, scale: float = 1.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5 * scale, err_msg=name)


@IN_TENSORFLOW
@pytest.mark.parametrize("kind", ["v1", "v2", "bottleneck", "group", "plain"])
def test_a_looped_stage_computes_what_the_flat_graph_computes(kind, monkeypatch):
    flat, looped = build(kind, False, monkeypatch), build(kind, True, monkeypatch)
    assert any(type(layer).__name__ == "Stage" for layer in looped.layers)
    copy_weights(flat, looped)
    x, _ = batch()
    np.testing.assert_allclose(flat(x, training=False), looped(x, training=False), atol=2e-5, rtol=1e-4)
    assert models.describe(flat).multiply_adds == models.describe(looped).multiply_adds
    assert models.describe(flat).receptive_field == models.describe(looped).receptive_field
    assert flat.count_params() == looped.count_params()
    if kind in ("v1", "group"):
        results = train_step(flat), train_step(looped)
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
        assert_close(results[0][1], results[1][1])
        assert_close(results[0][2], results[1][2])


@IN_TENSORFLOW
@pytest.mark.parametrize(
    ("kind", "looped"), [("v1", False), ("v1", True), ("v2", False), ("drop", False), ("drop", True)]
)
def test_rematerialised_training_agrees_with_plain_training(kind, looped, monkeypatch):
    plain, remat = build(kind, looped, monkeypatch), build(kind, looped, monkeypatch, remat=True)
    assert [w.path for w in plain.weights] == [w.path for w in remat.weights]
    remat.set_weights(plain.get_weights())
    for a, b in zip(plain.variables, remat.variables, strict=True):  # the seeds of stochastic depth too
        b.assign(a)
    (loss, gradients, statistics), other = train_step(plain), train_step(remat)
    np.testing.assert_allclose(loss, other[0], rtol=1e-6)
    assert_close(gradients, other[1])
    assert_close(statistics, other[2])
    x, _ = batch()
    np.testing.assert_allclose(plain(x, training=False), remat(x, training=False), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("looped", [False, True])
def test_plain_and_rematerialised_models_read_each_others_files(looped, monkeypatch, tmp_path):
    plain, remat = build("v1", looped, monkeypatch), build("v1", looped, monkeypatch, remat=True)
    plain.save_weights(tmp_path / "a.weights.h5")
    remat.load_weights(tmp_path / "a.weights.h5")
    for a, b in zip(plain.get_weights(), remat.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    remat.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again) is type(remat)
    for a, b in zip(plain.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x, _ = batch()
    np.testing.assert_array_equal(remat(x, training=False), again(x, training=False))


def test_blocks_of_a_looped_stage_start_from_different_weights(monkeypatch):
    weights = models.named_weights(build("v1", True, monkeypatch))
    a, b = weights["stage2_block2_conv1/kernel"], weights["stage2_block3_conv1/kernel"]
    assert np.abs(a.numpy() - b.numpy()).max() > 0.01
    assert np.std([w.numpy().std() for n, w in weights.items() if n.startswith("stage2") and "kernel" in n]) < 0.1


def test_one_block_of_a_looped_stage_is_set_by_name(monkeypatch):
    weights = models.named_weights(build("v1", True, monkeypatch))
    others = weights["stage3_block3_conv2/kernel"].numpy()
    weights["stage3_block2_conv2/kernel"].assign(np.ones((3, 3, 8, 8), "float32"))
    assert weights["stage3_block2_conv2/kernel"].numpy().min() == 1.0
    np.testing.assert_array_equal(weights["stage3_block3_conv2/kernel"].numpy(), others)
    with pytest.raises(ValueError, match=r"stage3_block2_conv2/kernel.*does not fit"):
        weights["stage3_block2_conv2/kernel"].assign(np.ones((3, 3, 8, 9), "float32"))


def test_a_frozen_looped_stage_keeps_its_moving_averages(monkeypatch):
    model = build("v1", True, monkeypatch)
    model.trainable = False
    before = model.get_weights()
    model(batch()[0], training=True)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stochastic_depth_is_off_at_inference_and_random_in_training(monkeypatch):
    model = build("drop", True, monkeypatch)
    x, _ = batch()
    np.testing.assert_array_equal(model(x, training=False), model(x, training=False))
    assert np.abs(np.asarray(model(x, training=True)) - np.asarray(model(x, training=True))).max() > 1e-4
    rates = model.get_layer("stage4_blocks").rates
    np.testing.assert_allclose(rates, [0.5 * 8 / 9, 0.5])


def test_a_thousand_layers_build_save_and_load_within_the_default_recursion_limit(tmp_path):
    model = models.resnet_cifar(1202)
    names = models.named_weights(model)
    assert sum(int(np.prod(w.shape)) for n, w in names.items() if "moving" not in n) == 19_421_274
    assert "stage2_block200_conv2/kernel" in names
    model.save(tmp_path / "deep.keras")
    again = keras.models.load_model(tmp_path / "deep.keras")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
