"""What a trained classifier does with labelled pictures, as numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlkit.train._evaluate import outputs, predictor
from dlkit.train.tasks import gives_probabilities

BINS = 15  # of confidence, as in the paper


@dataclass(frozen=True)
class Outcome:
    """The probabilities of a classifier for every item of a source.

    Attributes:
        probabilities: (n, classes).
        targets: the true class ids, (n,).
        classes: their names.
    """

    probabilities: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each item, (n,)."""
        return self.probabilities.argmax(-1)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of that class, (n,)."""
        return self.probabilities.max(-1)

    def confusion(self) -> np.ndarray:
        """Counts (classes, classes): true class in rows, predicted class in columns.

        >>> Outcome(np.eye(2)[[0, 0, 1]], np.array([0, 1, 1]), ("a", "b")).confusion()
        array([[1, 0],
               [1, 1]])
        """
        n = len(self.classes)
        return np.bincount(self.targets * n + self.predicted, minlength=n * n).reshape(n, n)

    def per_class(self) -> list[dict[str, Any]]:
        """A row per class: items, precision tp / (tp + fp), recall tp / (tp + fn), f1; None for 0 / 0."""
        counts = self.confusion()
        rows = []
        for i, name in enumerate(self.classes):
            hit, true, said = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
            rows.append({
                "class": name, "items": true, "precision": hit / said if said else None,
                "recall": hit / true if true else None, "f1": 2 * hit / (true + said) if true + said else None,
            })  # fmt: skip
        return rows

    def calibration(self) -> tuple[list[dict[str, float]], float]:
        """Rows (low, high, share, confidence, accuracy) of the filled bins, and the expected calibration error.

            ECE = sum_bins share |accuracy - confidence|

        Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks", equation 3,
        https://arxiv.org/abs/1706.04599
        """
        place = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        right = self.predicted == self.targets
        rows = []
        for b in np.unique(place):
            held = place == b
            rows.append({
                "low": b / BINS, "high": (b + 1) / BINS, "share": float(held.mean()),
                "confidence": float(self.confidence[held].mean()), "accuracy": float(right[held].mean()),
            })  # fmt: skip
        return rows, sum(row["share"] * abs(row["accuracy"] - row["confidence"]) for row in rows)

    def worst(self, count: int) -> np.ndarray:
        """The wrong answers in which the true class was given the least probability, the worst first."""
        wrong = np.flatnonzero(self.predicted != self.targets)
        given = self.probabilities[wrong, self.targets[wrong]]
        return wrong[np.argsort(given, kind="stable")][:count]


def outcome(model: Any, source: Any, preprocess: Any) -> Outcome:
    """Returns what `model` says of every item of a classification source, in the source's order."""
    found, targets = outputs(predictor(model), source, preprocess)
    found = found.astype(np.float64)
    if not gives_probabilities(model):
        found = np.exp(found - found.max(-1, keepdims=True))
        found /= found.sum(-1, keepdims=True)
    return Outcome(found, targets.argmax(-1), tuple(source.classes))
