"""The temperature of a classifier: one number that makes its probabilities mean what they say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlkit._errors import InputError
from dlkit.export import _cases

SAMPLES = 5000  # the temperature is one number: its standard error is below 2 % with that many
_LOW, _HIGH = np.log(0.05), np.log(20.0)
_GOLDEN = (5**0.5 - 1) / 2


def calibration(
    model: Any, preprocess: Any, labels: Sequence[str], source: Any, *, probabilities: bool
) -> dict[str, Any]:
    """Returns the best temperature for `source`, with the likelihood and the calibration error before and after.

    Raises:
        InputError: the source has no labels, other classes, or fewer than two classes among its samples.
    """
    from dlkit.data import eval_pipeline

    _cases.check_classes(source, labels)
    if getattr(source, "labels", None) is None:
        raise InputError(f"calibrate={source.name!r} has no labels; give a validation Source with classes")
    part = _cases.spread(source, SAMPLES)
    targets = np.asarray(part.labels).astype(np.int64)
    if len(np.unique(targets)) < 2:
        raise InputError(f"calibrate={source.name!r} shows only one class; give samples of all classes")
    outputs = []
    for batch, _ in eval_pipeline(part, preprocess, _cases.BATCH):
        found = model.predict_on_batch(batch)
        outputs.append(np.asarray(found["probabilities"] if isinstance(found, dict) else found, np.float64))
    logits = np.concatenate(outputs)
    if probabilities:
        logits = np.log(np.maximum(logits, 1e-37))
    chosen = temperature(logits, targets)
    before, after = (likelihood(logits, targets, value) for value in (1.0, chosen))
    errors = [calibration_error(logits, targets, value) for value in (1.0, chosen)]
    return {
        "temperature": chosen,
        "source": str(source.name),
        "samples": len(targets),
        "negative_log_likelihood": [round(before, 6), round(after, 6)],
        "expected_calibration_error": [round(value, 6) for value in errors],
    }


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the T that minimises the mean negative log-likelihood of softmax(logits / T).

        L(T) = mean_i( logsumexp(z_i / T) - z_i[y_i] / T )

    L is convex in 1/T, so the golden section finds its only minimum, here on a scale of log T between 0.05 and 20.

    Args:
        logits: (n, classes), float64.
        targets: class numbers (n,), from data that was not trained on.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(4000, 3))
    >>> y = (z + rng.gumbel(size=z.shape)).argmax(-1)      # labels drawn from softmax(z)
    >>> 1.8 < temperature(2 * z, y) < 2.2
    True

    Reference: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    low, high = float(_LOW), float(_HIGH)
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = (likelihood(logits, targets, float(np.exp(value))) for value in (a, b))
    while high - low > 1e-5:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = likelihood(logits, targets, float(np.exp(a)))
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = likelihood(logits, targets, float(np.exp(b)))
    return round(float(np.exp((low + high) / 2)), 4)


def likelihood(logits: np.ndarray, targets: np.ndarray, value: float) -> float:
    """Returns the mean negative log-likelihood at the temperature `value`."""
    scaled = logits / value
    top = scaled.max(-1, keepdims=True)
    total = np.log(np.exp(scaled - top).sum(-1)) + top[:, 0]
    return float(np.mean(total - np.take_along_axis(scaled, targets[:, None], -1)[:, 0]))


def calibration_error(logits: np.ndarray, targets: np.ndarray, value: float, bins: int = 15) -> float:
    """Returns the mean gap between confidence and accuracy over equally wide bins of confidence (0 is perfect)."""
    scaled = np.exp((logits - logits.max(-1, keepdims=True)) / value)
    confidence = scaled.max(-1) / scaled.sum(-1)
    right = logits.argmax(-1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(float(np.sum(right[place == i]) - np.sum(confidence[place == i]))) for i in range(bins)]
    return sum(gaps) / len(targets)
