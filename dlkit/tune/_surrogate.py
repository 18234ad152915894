"""What trials of different lengths say about untried ones: a Gaussian process over configuration and epochs."""

import math
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

Array = np.ndarray
CURVE = 0.5  # variance of what all configurations share: the mean learning curve
JITTER = 1e-6
MOST = 200  # points that the scales are fitted to


def _root(covariance: Array) -> Array:
    """Factorises with SciPy, as what follows does: NumPy's threads and those of SciPy's library wait for each other."""
    factor: Array = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    return factor


class GaussianProcess:
    """The score of a configuration x after a share f of the (logarithmic) epochs.

        k((x, f), (x', f')) = s^2 [ m(x, x') (w + (1 - w) r(f, f')) + c r(f, f') ] + noise

    m is a Matern 5/2 kernel with a length per feature, r a squared exponential. w says how much of a configuration's
    quality shows at every length of training: where early scores tell little, little is concluded from them.

    Args:
        features: number of features of x.

    Reference: Rasmussen and Williams, 2006, "Gaussian Processes for Machine Learning", equations 4.17, 5.8 and 5.9;
    Klein et al., 2020, "Model-based Asynchronous Hyperparameter and Neural Architecture Search".
    """

    def __init__(self, features: int):
        self.features = features
        # logarithms of the lengths of x and f, the logit of w, the logarithm of the noise, and how sure we are of them:
        # mean and spread of what 200 random trials of each development task of the benchmark gave (docs/tuning.md)
        self.expected = np.array([0.2] * features + [-0.6, -1.2, -6.0])
        self.spread = np.array([0.9] * features + [0.5, 1.0, 1.5])
        self.bounds = [(math.log(0.05), math.log(10))] * features + [
            (math.log(0.1), math.log(5)), (-4.0, 6.0), (math.log(1e-5), math.log(0.3)),
        ]  # fmt: skip
        self.scales = self.expected.copy()

    def fit_scales(self, x: Array, f: Array, y: Array) -> None:
        """Finds the most probable scales, from `expected` on, so that the same data give the same scales.

        More than `MOST` points are thinned to the best half of `MOST` and a fixed sample of the others.
        """
        if len(y) > MOST:
            order = np.argsort(-y, kind="stable")
            rest = np.random.default_rng(0).permutation(order[MOST // 2 :])[: MOST // 2]
            kept = np.concatenate([order[: MOST // 2], rest])
            x, f, y = x[kept], f[kept], y[kept]
        found = minimize(
            self._loss, self.expected, args=(x, f, y), jac=True, method="L-BFGS-B", bounds=self.bounds,
            options={"maxiter": 25},
        )  # fmt: skip
        self.scales = found.x

    def condition(self, x: Array, f: Array, y: Array) -> None:
        """Takes the data to predict from; y should have mean 0 and deviation 1."""
        self.x, self.f = x, f
        covariance = self._kernel(x, f, x, f) + (math.exp(self.scales[-1]) + JITTER) * np.eye(len(y))
        self.root = _root(covariance)
        self.weights = cho_solve((self.root, True), y)
        self.variance = max(float(y @ self.weights) / len(y), 1e-6)

    def predict(self, x: Array, f: Any = 1.0) -> tuple[Array, Array]:
        """Mean and standard deviation of the score at f, without noise."""
        k = self._kernel(self.x, self.f, x, np.full(len(x), float(f)))
        explained = (solve_triangular(self.root, k, lower=True, check_finite=False) ** 2).sum(0)
        return k.T @ self.weights, np.sqrt(self.variance * np.maximum(1 + CURVE - explained, 1e-10))

    def _kernel(self, x: Array, f: Array, x2: Array, f2: Array) -> Array:
        matern, _, _, over_f, w = self._parts(self.scales, x, f, x2, f2)
        return matern * (w + (1 - w) * over_f) + CURVE * over_f

    def _parts(
        self, scales: Array, x: Array, f: Array, x2: Array, f2: Array
    ) -> tuple[Array, Array, Array, Array, float]:
        d = self.features
        a, b = x / np.exp(scales[:d]), x2 / np.exp(scales[:d])
        square = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0)
        r = np.sqrt(5 * square + 1e-12)
        decay = np.exp(-r)
        apart = (f[:, None] - f2[None]) ** 2 / np.exp(2 * scales[d])
        matern = (1 + r + r * r / 3) * decay
        slope = 5 / 3 * (1 + r) * decay  # -d matern / d square * 2
        return matern, slope, apart, np.exp(-0.5 * apart), 1 / (1 + math.exp(-scales[d + 1]))

    def _loss(self, scales: Array, x: Array, f: Array, y: Array) -> tuple[float, Array]:
        """Minus the log posterior of the scales, the variance s^2 at its best value, and its gradient."""
        d, n = self.features, len(y)
        matern, slope, apart, over_f, w = self._parts(scales, x, f, x, f)
        mixed, noise = w + (1 - w) * over_f, math.exp(scales[d + 2])
        try:
            root = _root(matern * mixed + CURVE * over_f + (noise + JITTER) * np.eye(n))
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(scales)
        inverse = cho_solve((root, True), np.eye(n))
        weights = inverse @ y
        variance = max(float(y @ weights) / n, 1e-6)
        value = 0.5 * n * math.log(variance) + float(np.log(np.diag(root)).sum())
        outer = inverse - np.outer(weights, weights) / variance  # twice the gradient by the covariance
        gradient = np.empty(d + 3)
        pull = outer * mixed * slope
        rows = pull.sum(1)
        for i in range(d):
            z = x[:, i] / math.exp(scales[i])
            gradient[i] = (z * z) @ rows - z @ (pull @ z)
        gradient[d] = 0.5 * (outer * (matern * (1 - w) + CURVE) * over_f * apart).sum()
        gradient[d + 1] = 0.5 * (outer * matern * (1 - over_f)).sum() * w * (1 - w)
        gradient[d + 2] = 0.5 * np.trace(outer) * noise
        away = (scales - self.expected) / self.spread
        return value + 0.5 * float(away @ away), gradient + away / self.spread


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """E[max(score - best, 0)] for normal scores (Jones, Schonlau and Welch, 1998, equation 15)."""
    z = (mean - best) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def winsorize(y: Array) -> Array:
    """Brings scores to mean 0 and deviation 1 after raising the worst ones.

    Nothing lies further below the median than three times the way from the median to the best: how bad the bad ones
    are must not decide the scales of the model.
    """
    median, best = np.median(y), y.max()
    y = np.maximum(y, median - 3 * (best - median))
    return (y - y.mean()) / (y.std() + 1e-9)
