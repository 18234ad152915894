"""Losses against float64 formulas in NumPy, their gradients against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.train import Recipe, losses, tasks

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)) * 2
IDS = RNG.integers(0, 4, 6)
ONE_HOT = np.eye(4)[IDS]
SHARES = RNG.dirichlet(np.ones(4), 6)
BOXES = np.concatenate([RNG.uniform(0, 0.5, (6, 2)), RNG.uniform(0.2, 0.5, (6, 2))], 1)
GUESS = BOXES + RNG.normal(size=(6, 4)) * 0.15
APART = BOXES + np.array([1.5, 0.05, 0.02, -0.03])  # no edges in line: the slope has a kink there


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(y, o, s=0.0):
    return -((y * (1 - s) + s / y.shape[-1]) * log_softmax(o)).sum(-1).mean()


def bce(y, o, s=0.0):
    y = y * (1 - s) + s / 2
    return (np.maximum(o, 0) - o * y + np.log1p(np.exp(-np.abs(o)))).mean()


def smooth_l1(y, o, beta=1 / 9):
    e = np.abs(y - o)
    return np.where(e < beta, e**2 / (2 * beta), e - beta / 2).mean()


def huber(y, o):
    e = np.abs(y - o)
    return np.where(e < 1, e**2 / 2, e - 0.5).mean()


def areas(y, o):
    total = []
    for (x1, y1, w1, h1), (x2, y2, w2, h2) in zip(y, o, strict=True):
        w2, h2 = max(w2, 0), max(h2, 0)
        both = max(min(x1 + w1, x2 + w2) - max(x1, x2), 0) * max(min(y1 + h1, y2 + h2) - max(y1, y2), 0)
        around = (max(x1 + w1, x2 + w2) - min(x1, x2)) * (max(y1 + h1, y2 + h2) - min(y1, y2))
        total.append((both, w1 * h1 + w2 * h2 - both, around))
    return np.array(total).T


def iou(y, o):
    both, union, _ = areas(y, o)
    return (1 - both / union).mean()


def giou(y, o):
    both, union, around = areas(y, o)
    return (1 - both / union + (around - union) / around).mean()


CASES = [
    ("mse", BOXES, GUESS, 0.0, lambda y, o: ((y - o) ** 2).mean()),
    ("mae", BOXES, GUESS, 0.0, lambda y, o: np.abs(y - o).mean()),
    ("huber", BOXES * 5, GUESS, 0.0, huber),
    ("smooth_l1", BOXES, GUESS, 0.0, smooth_l1),
    ("bce", ONE_HOT, LOGITS, 0.0, bce),
    ("bce", ONE_HOT, LOGITS, 0.1, lambda y, o: bce(y, o, 0.1)),
    ("cross_entropy", ONE_HOT, LOGITS, 0.0, cross_entropy),
    ("cross_entropy", SHARES, LOGITS, 0.2, lambda y, o: cross_entropy(y, o, 0.2)),
    ("iou", BOXES, GUESS, 0.0, iou),
    ("giou", BOXES, GUESS, 0.0, giou),
    ("giou", BOXES, APART, 0.0, giou),
]


@pytest.mark.parametrize(("name", "y", "o", "smoothing", "reference"), CASES)
def test_a_loss_is_its_formula_and_its_gradient_the_formulas_slope(name, y, o, smoothing, reference):
    loss = losses.get(name, label_smoothing=smoothing)
    y32, o32 = tf.constant(y, tf.float32), tf.constant(o, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(o32)
        value = loss(y32, o32)
    assert float(value) == pytest.approx(reference(y, o), rel=1e-5)
    slopes = np.zeros_like(o)
    for place in np.ndindex(o.shape):
        d = np.zeros_like(o)
        d[place] = 1e-6
        slopes[place] = (reference(y, o + d) - reference(y, o - d)) / 2e-6
    np.testing.assert_allclose(tape.gradient(value, o32), slopes, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ids", [IDS, IDS[:, None], IDS.astype("float32")])
def test_integer_labels_are_smoothed_as_one_hot_ones_are(ids):
    loss = losses.get("cross_entropy", label_smoothing=0.1)
    assert float(loss(ids, LOGITS.astype("float32"))) == pytest.approx(cross_entropy(ONE_HOT, LOGITS, 0.1), rel=1e-5)


def test_probabilities_and_logits_lose_the_same():
    p = np.exp(log_softmax(LOGITS)).astype("float32")
    loss = losses.get("cross_entropy", from_logits=False, label_smoothing=0.1)
    assert float(loss(ONE_HOT, p)) == pytest.approx(cross_entropy(ONE_HOT, LOGITS, 0.1), rel=1e-4)


def test_degenerate_boxes_lose_finitely():
    empty = np.zeros((2, 4), "float32")
    for name in ("iou", "giou"):
        o = tf.constant([[0.0, 0.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
        with tf.GradientTape() as tape:
            tape.watch(o)
            value = losses.get(name)(empty, o)
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, o)).all()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_survives_its_config(name):
    loss = losses.get(name)
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(twin(BOXES, GUESS)) == float(loss(BOXES, GUESS))


def test_a_loss_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="did you mean 'huber'"):
        losses.get("hubber")
    with pytest.raises(InputError, match="label_smoothing is for"):
        losses.get("mse", label_smoothing=0.1)
    with pytest.raises(InputError, match="does not suit the task 'box'; choose one of"):
        losses.check_task("cross_entropy", "box")
    with pytest.raises(InputError, match="did you mean 'giou'"):
        Recipe(loss="gio")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    with pytest.raises(InputError, match="label_smoothing is for"):
        tasks.loss("box", model, 0.1, "giou")
