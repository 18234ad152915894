"""A model's second run may take over the traced functions of its first where only numbers differ, to the same bits."""

from dataclasses import replace

import digits_run as small
import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit.data import eval_pipeline
from dlkit.train import Recipe, _traced, fit
from dlkit.train.stopping import Plateau

FIRST = Recipe(
    epochs=2, batch=50, optimizer="nesterov", peak_lr=0.05, weight_decay=1e-3, label_smoothing=0.1, l1=1e-4, l2=1e-3,
    clip_norm=1.0, warmup_epochs=0.5,
)  # fmt: skip
OTHER = {"peak_lr": 0.2, "weight_decay": 0.03, "label_smoothing": 0.0, "l1": 1e-3, "l2": 1e-5, "clip_norm": 5.0}
KINDS = {
    "nesterov": {},
    "adamw with an average": {"optimizer": "adamw", "peak_lr": 0.01, "ema": 0.9},
    "adagrad": {"optimizer": "adagrad"},
    "muon with lookahead": {"optimizer": "muon", "lookahead": 2, "lr_groups": (("bias", 2.0),)},
    "accumulated": {"accumulate": 2},
    "plateau": {"plateau": Plateau(metric="loss", patience=1, min_delta=100.0), "epochs": 3},
}


def trained(model, recipe, run_dir):
    train, _ = small.sources()
    with _traced.keeping():
        fit(model, recipe, train, preprocess=small.PREPROCESS, run_dir=run_dir, verbose=False)
    return model.__dict__[_traced._NAME]


def restart(model):
    for variable, value in zip(model.variables, small.model().variables, strict=True):
        variable.assign(value)


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_need_no_new_trace_and_give_the_bits_of_a_fresh_model(kind, tmp_path):
    first = replace(FIRST, **KINDS[kind])
    second = replace(first, **OTHER)
    model, fresh = small.model(), small.model()
    before = trained(model, first, tmp_path / "first")
    restart(model)
    after = trained(model, second, tmp_path / "second")
    assert after is before
    assert after.step._traced.experimental_get_tracing_count() == 1
    trained(fresh, second, tmp_path / "fresh")
    state = [[*network.variables, *network.optimizer.variables] for network in (model, fresh)]
    for a, b in zip(*state, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for mine, theirs in ((model.optimizer, fresh.optimizer), (model.loss, fresh.loss)):
        named = {"name": "", "exclude": ""}  # Keras numbers names
        assert mine.get_config() | named == theirs.get_config() | named


@pytest.mark.parametrize(
    "change",
    [{"momentum": 0.5}, {"schedule": "constant"}, {"epochs": 3}, {"l1": 0.0}, {"ema": 0.9}, {"freeze": ("dense",)}],
)
def test_what_is_part_of_the_trace_is_traced_again(change, tmp_path):
    model = small.model()
    before = trained(model, FIRST, tmp_path / "first")
    assert trained(model, replace(FIRST, **change), tmp_path / "second") is not before


def test_a_layer_changed_in_between_and_another_compile_are_noticed(tmp_path):
    model = small.model()
    before = trained(model, FIRST, tmp_path / "first")
    model.get_layer("dropout").rate = 0.5
    changed = trained(model, FIRST, tmp_path / "second")
    assert changed is not before
    model.compile("sgd", "mse")
    assert trained(model, FIRST, tmp_path / "third") is not changed


def test_keras_own_functions_see_the_numbers_of_the_latest_run(tmp_path):
    model = small.model()
    x, y = next(iter(eval_pipeline(small.sources()[1], small.PREPROCESS, 60)))
    trained(model, replace(FIRST, label_smoothing=0.0), tmp_path / "first")
    model.evaluate(x, y, verbose=0)
    trained(model, replace(FIRST, label_smoothing=0.5), tmp_path / "second")
    found = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(float(keras.losses.get(model.loss)(y, model(x))), rel=1e-5)


class Gate(keras.layers.Layer):
    """Multiplies by an attribute that its configuration does not show."""

    scale = 1.0

    def call(self, inputs):
        return inputs * self.scale


def test_a_run_of_its_own_sees_what_no_configuration_shows(tmp_path):
    train, _ = small.sources()
    inputs = keras.Input(small.PREPROCESS.input_shape)
    model = keras.Model(inputs, keras.layers.Dense(10)(Gate(name="gate")(keras.layers.Flatten()(inputs))))
    given = {"preprocess": small.PREPROCESS, "verbose": False}
    fit(model, FIRST, train, run_dir=tmp_path / "first", **given)
    model.get_layer("gate").scale = 0.0
    kernel = model.layers[-1].kernel
    kernel.assign(np.zeros(kernel.shape))
    fit(model, FIRST, train, run_dir=tmp_path / "second", **given)
    assert not kernel.numpy().any()  # nothing reaches it


@pytest.mark.filterwarnings("ignore:Even though the .tf.config.experimental_run_functions_eagerly")
def test_without_tf_function_the_run_is_the_same(tmp_path):
    train, _ = small.sources()
    states = []
    for eagerly in (False, True):
        model = small.model()
        tf.config.run_functions_eagerly(eagerly)
        try:
            recipe = replace(FIRST, precision="float32", epochs=1)
            fit(model, recipe, train, preprocess=small.PREPROCESS, run_dir=tmp_path / str(eagerly), verbose=False)
        finally:
            tf.config.run_functions_eagerly(False)
        states.append(model.get_weights())
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
