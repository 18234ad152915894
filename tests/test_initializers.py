"""Initial weights: the variances of the lectures' formulas, Dirac, and LSUV."""

import keras
import numpy as np
import pytest
from keras import ops

from dlkit import initializers
from dlkit._errors import InputError

N_IN, N_OUT = 400, 200
VARIANCES = {
    "xavier": 1 / N_IN,
    "xavier_uniform": 1 / N_IN,
    "glorot": 2 / (N_IN + N_OUT),
    "glorot_uniform": 2 / (N_IN + N_OUT),
    "he": 2 / N_IN,
    "he_uniform": 2 / N_IN,
    "he_fan_out": 2 / N_OUT,
    "lecun": 1 / N_IN,
    "normal": 1.0,
    "uniform": 0.05**2 / 3,
}


def array(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


@pytest.mark.parametrize("name", VARIANCES)
def test_a_name_draws_with_the_variance_of_its_formula(name):
    draws = array(initializers.get(name, seed=3)((N_IN, N_OUT)))
    assert draws.var() == pytest.approx(VARIANCES[name], rel=0.03)  # 80,000 draws: 0.5 % expected
    assert abs(draws.mean()) < 5 * np.sqrt(VARIANCES[name] / draws.size)


def test_fans_of_a_convolution_count_its_window():
    draws = array(initializers.get("he", seed=1)((3, 3, 64, 64)))
    assert draws.var() == pytest.approx(2 / (9 * 64), rel=0.03)


def test_seeds_repeat_draws_and_different_seeds_do_not():
    first, again, other = (array(initializers.get("he", seed=s)((4, 4))) for s in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).any()


def test_a_seed_reaches_classes_and_configs_and_what_cannot_take_an_argument_refuses_it():
    cls = keras.initializers.HeNormal
    config = keras.initializers.serialize(cls(seed=5))
    for form in (cls, config):
        first, again = (array(initializers.get(form, seed=1)((3, 3))) for _ in range(2))
        assert (first == again).all()
        assert not (first == array(cls(seed=5)((3, 3)))).any()
    assert (array(initializers.get(config)((3, 3))) == array(cls(seed=5)((3, 3)))).all()
    for form in (config, cls()):
        with pytest.raises(InputError, match="does not take"):
            initializers.get(form, stddev=1.0)


def test_lsuv_reports_the_variance_that_it_leaves():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    x = np.random.default_rng(0).normal(0, 5, size=(64, 8)).astype("float32")
    for iterations in (0, 1):
        reached = initializers.lsuv(model, x, max_iterations=iterations, tolerance=1e-12)["dense"]
        assert reached == pytest.approx(array(model(x, training=False)).var(), rel=1e-6)
        assert (abs(reached - 1) < 1e-3) == bool(iterations)


def test_get_takes_names_classes_configs_callables_and_arguments():
    assert array(initializers.get("constant", value=0.3)((2,))).tolist() == pytest.approx([0.3, 0.3])
    assert isinstance(initializers.get(keras.initializers.HeNormal), keras.initializers.HeNormal)
    instance = initializers.get("dirac")
    assert initializers.get(instance) is instance
    config = keras.initializers.serialize(instance)
    assert isinstance(initializers.get(config), initializers.Dirac)


def test_dirac_passes_every_channel_on_in_each_group():
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 4)).astype("float32")
    same = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_initializer=initializers.Dirac())
    assert np.allclose(array(same(x)), x, atol=1e-6)
    grouped = keras.layers.Conv2D(
        4, 3, padding="same", groups=2, use_bias=False, kernel_initializer=initializers.Dirac(groups=2, gain=2.0)
    )
    assert np.allclose(array(grouped(x)), 2 * x, atol=1e-6)


def test_dirac_fills_the_rest_as_asked_and_keeps_its_config():
    dirac = initializers.Dirac(rest="ones")
    kernel = array(dirac((1, 2, 3)))
    assert kernel[0].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    again = initializers.Dirac.from_config(dirac.get_config())
    assert again.get_config() == dirac.get_config()


def test_lsuv_gives_unit_variance_before_each_activation_and_keeps_the_activations():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(4),
        ]
    )
    x = np.random.default_rng(0).normal(3, 5, size=(64, 8, 8, 3)).astype("float32")
    reached = initializers.lsuv(model, x)
    assert list(reached) == [layer.name for layer in model.layers if layer.weights]
    assert all(abs(v - 1) < 0.01 for v in reached.values())
    assert array(model(x, training=False)).var() == pytest.approx(1, abs=0.02)
    assert model.layers[0].activation is keras.activations.relu


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: initializers.get("xavvier"), "did you mean 'xavier'"),
        (lambda: initializers.get("he", stddev=1.0), "does not take"),
        (lambda: initializers.get(3), "known names"),
        (lambda: initializers.Dirac(groups=0), "groups=0"),
        (lambda: initializers.Dirac(groups=2)((3, 3, 4, 5)), "groups divide"),
        (lambda: initializers.lsuv(keras.Sequential([keras.layers.Dense(2)]), np.ones((2, 2))), "build it first"),
        (
            lambda: initializers.lsuv(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), np.zeros((4, 2))),
            "variance 0.0",
        ),
    ],
)
def test_wrong_input_is_explained(call, says):
    with pytest.raises(InputError, match=says):
        call()
