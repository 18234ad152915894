"""The surface of a network's loss: cut by a plane, and along the gradient."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit.train import losses


def plane(model: keras.Model, inputs: Any, labels: Any, points: int, seed: int = 0) -> np.ndarray:
    """Returns the cross-entropy at w + a d + b e for a, b from -1 to 1, around the model's weights w.

    The directions d and e are random, and each filter of them is as long as the same filter of w, so that networks of
    different scales can be compared. Norms and biases stay where they are; the model is left as it was.

    Args:
        model: a classifier that gives logits.
        inputs, labels: a batch, and its class ids.
        points: per axis.
        seed: of the directions.

    Returns:
        The losses, (points, points): b is the row, a the column.

    Reference: H. Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018, section 4,
    https://arxiv.org/abs/1712.09913. Lecture 003 (M. Gushchin), "Examples of loss functions of neural networks".
    """
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    middle, rng = [v.numpy() for v in kernels], np.random.default_rng(seed)

    def direction() -> list[np.ndarray]:
        draws = [rng.normal(size=k.shape) for k in middle]
        return [d * _lengths(k) / _lengths(d) for d, k in zip(draws, middle, strict=True)]

    one, two = direction(), direction()
    loss = tf.function(lambda: losses.get("cross_entropy")(labels, model(inputs, training=False)))
    side, found = np.linspace(-1, 1, points), np.zeros((points, points))
    for row, column in np.ndindex(found.shape):
        for variable, k, d, e in zip(kernels, middle, one, two, strict=True):
            variable.assign(k + side[column] * d + side[row] * e)
        found[row, column] = loss()
    for variable, k in zip(kernels, middle, strict=True):
        variable.assign(k)
    return found


def concave(surface: np.ndarray) -> float:
    """Returns the share of a plane, in %, where the surface bends down in some direction: a negative eigenvalue.

    0 for a convex surface. Li et al., section 6, draw the ratio of the eigenvalues at each point.

    >>> a, b = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
    >>> concave(a**2 + b**2), concave(a**2 - b**2)
    (0.0, 100.0)
    """
    down, right = np.gradient(surface)
    (yy, _), (xy, xx) = np.gradient(down), np.gradient(right)
    smallest = (xx + yy) / 2 - np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    return 100 * float((smallest[1:-1, 1:-1] < 0).mean())


class Along:
    """Tells what a step of descent meets at a model's weights, in training mode; the model is left as it was.

    Calling it gives a dict:

        loss   the range of the loss over steps of 1/2, 1, 2 and 4 times the rate
        angle  the angle between the gradient here and after one step, degrees
        shift  |G - G'| / |G|, where G is the gradient of the layer's kernel and G' the same after the layers before it
               took their step: the internal covariate shift

    Args:
        model: a classifier that gives logits.
        inputs, labels: a batch, and its targets.
        rate: the learning rate.
        layer: the name of a layer with a kernel.

    Reference: S. Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018, figure 4 and definition
    2.1, https://arxiv.org/abs/1805.11604. Lecture 000 (E. Sokolov), section 6.1.
    """

    def __init__(self, model: keras.Model, inputs: Any, labels: Any, rate: float, layer: str) -> None:
        self.model, self.rate, self.weights = model, rate, model.trainable_variables
        self.place = [w.path for w in self.weights].index(model.get_layer(layer).kernel.path)

        @tf.function
        def look() -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                loss = losses.get("cross_entropy")(labels, model(inputs, training=True))
            return loss, tape.gradient(loss, self.weights)

        self._look = look

    def __call__(self) -> dict[str, float]:
        kept, start = [v.numpy() for v in self.model.variables], [w.numpy() for w in self.weights]
        _, here = self._at(start)
        steps = [self._at([w - f * self.rate * g for w, g in zip(start, here, strict=True)]) for f in (0.5, 1, 2, 4)]
        moved = [w - self.rate * g for w, g in zip(start[: self.place], here, strict=False)] + start[self.place :]
        kernel, after = here[self.place], self._at(moved)[1][self.place]
        for variable, value in zip(self.model.variables, kept, strict=True):
            variable.assign(value)
        found = [loss for loss, _ in steps]
        return {
            "loss": max(found) - min(found),
            "angle": _angle(here, steps[1][1]),
            "shift": float(np.linalg.norm(after - kernel) / np.linalg.norm(kernel)),
        }

    def _at(self, weights: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        """Returns loss and gradient at these weights."""
        for variable, value in zip(self.weights, weights, strict=True):
            variable.assign(value)
        loss, gradient = self._look()
        return float(loss), [g.numpy() for g in gradient]


def _angle(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    flat = [np.concatenate([g.ravel() for g in gradient]).astype("float64") for gradient in (a, b)]
    cosine = flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _lengths(kernel: np.ndarray) -> np.ndarray:
    """Returns the Euclidean length of each filter, that is of each output channel."""
    return np.sqrt((kernel**2).sum(axis=tuple(range(kernel.ndim - 1)), keepdims=True))
