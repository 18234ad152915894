"""Losses and metrics of the tasks against NumPy, and models that do not fit the data."""

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays
from dlkit.train import tasks


def head(activation, outputs=7):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(outputs, activation=activation)(inputs))


def test_logits_and_their_softmax_score_the_same():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 7)) * 3
    targets = np.eye(7)[rng.integers(0, 7, 50)]
    odds = np.exp(logits)
    probabilities = odds / odds.sum(-1, keepdims=True)
    a = tasks.score("classification", logits, targets, probabilities=False)
    b = tasks.score("classification", probabilities, targets, probabilities=True)
    assert a == pytest.approx(b)
    truth = targets.argmax(-1)
    assert a["accuracy"] == np.mean(logits.argmax(-1) == truth)
    assert a["loss"] == pytest.approx(-np.mean(np.log(probabilities[np.arange(50), truth])))
    top5 = [truth[i] in np.argsort(-logits[i])[:5] for i in range(50)]
    assert a["top5_accuracy"] == np.mean(top5)


def test_boxes_score_their_overlap():
    a = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.1]])
    b = np.array([[0.25, 0.0, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1]])
    assert tasks.iou(a, b) == pytest.approx([1 / 3, 0.0])
    found = tasks.score("box", a, b, probabilities=False)
    assert found["iou"] == pytest.approx(1 / 6)
    assert found["loss"] == pytest.approx(np.mean((a - b) ** 2))


@pytest.mark.parametrize(
    ("activation", "expected"), [(None, False), ("relu", False), ("softmax", True), ("sigmoid", True)]
)
def test_a_model_tells_whether_it_gives_probabilities(activation, expected):
    assert tasks.gives_probabilities(head(activation)) is expected


IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
BOXES = np.tile([0.1, 0.1, 0.5, 0.5], (4, 1))


@pytest.mark.parametrize(
    ("outputs", "source", "message"),
    [
        (1, from_arrays(IMAGES, [0, 0, 0, 0]), "one class, '0'"),
        (4, from_arrays(IMAGES, [0, 1, 0, 1], boxes=BOXES), r"take source\.as_task\('box'\)"),
        (3, from_arrays(IMAGES, [0.0, 1.0, 2.0, 3.0]), "the model has 3 outputs, 'arrays' has 1 targets per sample"),
        (1, from_arrays(IMAGES, np.ones((4, 3))), "build the model with classes=3"),
        ("two", from_arrays(IMAGES, [0, 1, 0, 1]), "no functional model of one input and one output"),
        ("named", from_arrays(IMAGES, [0, 1, 0, 1]), "of several outputs take one"),
        ("map", from_arrays(IMAGES, [0, 1, 0, 1]), "one output"),
        ("class", from_arrays(IMAGES, [0, 1, 0, 1]), "no functional model"),
    ],
)
def test_a_model_that_does_not_answer_what_the_source_asks_is_refused(outputs, source, message):
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    model = {
        "two": lambda: keras.Model(inputs, [keras.layers.Dense(2)(flat), keras.layers.Dense(2)(flat)]),
        "named": lambda: keras.Model(inputs, {"a": keras.layers.Dense(2)(flat)}),
        "map": lambda: keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs)),
        "class": lambda: type("Own", (keras.Model,), {})(),
    }.get(outputs, lambda: keras.Model(inputs, keras.layers.Dense(outputs)(flat)))()
    with pytest.raises(InputError, match=message):
        tasks.check(model, source.task, source, Preprocess(8, channels=1))


def test_smoothed_cross_entropy_is_the_formula():
    logits = np.array([[2.0, -1.0, 0.5]])
    target = np.array([[0.0, 1.0, 0.0]])
    smooth = target * 0.9 + 0.1 / 3
    log_p = logits - np.log(np.exp(logits).sum())
    loss = tasks.loss("classification", head(None, 3), label_smoothing=0.1)
    assert float(loss(target, logits)) == pytest.approx(-(smooth * log_p).sum(), rel=1e-6)
