"""What suits a machine: the choices for a table of machines, their reasons, and that they can be undone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit.train import Recipe, precision
from dlkit.train.precision import Machine, fast_math

OPTION = "auto_mixed_precision_onednn_bfloat16"


@pytest.fixture(autouse=True)
def settings_put_back():
    yield
    fast_math(False, verbose=False)


def option():
    return bool(tf.config.optimizer.get_experimental_options().get(OPTION, False))


@pytest.mark.parametrize(
    ("machine", "expected", "policy", "jit", "word"),
    [
        (Machine(4, True, None, 4), "bfloat16", "float32", False, "in hardware"),
        (Machine(4, False, None, 4), "float32", "float32", False, "neither AVX512-BF16 nor AMX"),
        (Machine(8, True, (9, 0), 8), "float32", "mixed_bfloat16", True, "9.0"),
        (Machine(8, True, (7, 5), 8), "float32", "mixed_float16", True, "7.5"),
        (Machine(8, True, (6, 1), 8), "float32", "float32", True, "no tensor cores"),
    ],
)
def test_each_machine_gets_what_is_fastest_on_it_with_the_reason(machine, expected, policy, jit, word):
    choice = fast_math(machine=machine, verbose=False)
    assert (choice.precision, choice.policy, choice.jit_compile) == (expected, policy, jit)
    assert word in str(choice)
    assert option() == (expected == "bfloat16")
    assert keras.config.dtype_policy().name == policy


@pytest.mark.parametrize("task", ["classification", "regression", "box"])
@pytest.mark.parametrize("here", [True, False])
def test_a_recipe_computes_in_half_precision_only_where_its_outputs_are_classes(task, here, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: here)
    half = here and task == "classification"
    assert precision.of(Recipe(task=task)) == ("bfloat16" if half else "float32")
    for name in ("float32", "bfloat16"):
        assert precision.of(Recipe(task=task, precision=name)) == name


def test_fewer_allowed_processors_mean_fewer_threads():
    assert precision._choice(Machine(2, False, None, 64)).threads == 2
    assert precision._choice(Machine(64, False, None, 64)).threads == 0


def test_threads_that_come_too_late_are_reported():
    tf.constant(1.0) + 1.0
    choice = fast_math(machine=Machine(1, False, None, 64), verbose=False)
    assert choice.threads == 0
    assert "started already" in str(choice)


def test_it_says_what_it_chose(capsys):
    fast_math(machine=Machine(4, True, None, 4))
    assert "bfloat16 by the graph optimiser" in capsys.readouterr().out


def test_turning_it_off_puts_everything_back():
    fast_math(machine=Machine(4, True, None, 4), verbose=False)
    fast_math(machine=Machine(4, True, (8, 0), 4), verbose=False)
    choice = fast_math(False, verbose=False)
    assert (choice.precision, choice.jit_compile, option()) == ("float32", False, False)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.skipif(not precision.has_bfloat16(), reason="this processor has no bfloat16")
def test_the_graph_optimisers_bfloat16_is_off_by_about_its_own_rounding():
    x = np.random.default_rng(0).normal(size=(64, 256)).astype("float32")
    w = tf.Variable(np.random.default_rng(1).normal(size=(256, 256)).astype("float32") / 16)
    exact = x.astype("float64") @ w.numpy().astype("float64")
    errors = {}
    for name in ("float32", "bfloat16"):
        with precision.arithmetic(name):
            found = tf.function(lambda v: tf.nn.relu(tf.matmul(v, w)) - tf.nn.relu(-tf.matmul(v, w)))(x)
        errors[name] = np.abs(found - exact).max()
    assert errors["float32"] < 1e-4
    assert 1e-4 < errors["bfloat16"] < 0.06


def test_a_quota_is_read_as_whole_processors(monkeypatch):
    for text, expected in (("150000 100000", 2), ("max 100000", None), ("nonsense", None)):
        monkeypatch.setattr(precision.Path, "read_text", lambda self, text=text: text)
        assert precision._quota() == expected
