"""Dropout in both of the lectures' forms, and stochastic depth."""

from typing import Any

import keras
from keras import ops

from dlkit._errors import unknown
from dlkit.layers._axes import number

SCALE_AT = ("train", "test")


class Dropping(keras.layers.Layer):
    """What both layers share: a rate, where to scale, and a seed."""

    def __init__(self, rate: float, scale_at: str, seed: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = number(rate, "rate", type(self).__name__, 0.0, 1.0, 0.5)
        if scale_at not in SCALE_AT:
            raise unknown(f"scale_at of {type(self).__name__}", scale_at, SCALE_AT)
        self.scale_at, self.seed = scale_at, seed
        self.supports_masking = True
        if self.rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def noise_shape(self, inputs: Any) -> Any:
        """Returns the shape of the draws, or None for one draw per value."""
        return

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.rate == 0:
            return inputs
        if not training:
            return inputs if self.scale_at == "train" else inputs * ops.cast(1.0 - self.rate, inputs.dtype)
        if self.rate == 1:
            return ops.zeros_like(inputs)
        kept = keras.random.dropout(inputs, self.rate, noise_shape=self.noise_shape(inputs), seed=self.seed_generator)
        return kept if self.scale_at == "train" else kept * ops.cast(1.0 - self.rate, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "scale_at": self.scale_at, "seed": self.seed}


@keras.saving.register_keras_serializable(package="dlkit")
class Dropout(Dropping):
    """Sets each value to zero with probability `rate` in training.

        scale_at="train":  training  y = m x / (1 - rate)    inference  y = x
        scale_at="test":   training  y = m x                 inference  y = (1 - rate) x
        m = 0 with probability rate, else 1; the lecture's p is 1 - rate

    Both keep the expectation. Scaling in training (the default) leaves inference and exports untouched; scaling at
    test time is the form of the original paper.

    Args:
        rate: fraction of values dropped, in [0, 1]. It drops; it does not keep.
        scale_at: "train" or "test", see above.
        seed: of the draws; None draws one.
        **kwargs: `name`, `dtype`.

    Input and output: any shape.

    Raises:
        InputError: rate outside [0, 1] or an unknown `scale_at`.

    Example:
        >>> import numpy as np
        >>> x = np.full((1, 2), 4.0, "float32")
        >>> keras.ops.convert_to_numpy(Dropout(0.25, scale_at="test")(x, training=False)).tolist()
        [[3.0, 3.0]]

    Reference: N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout", 2014, section 4 and
    10, https://jmlr.org/papers/v15/srivastava14a.html. Lecture 004 (I. Ivanov), "Dropout".
    """

    def __init__(self, rate: float, scale_at: str = "train", seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, scale_at, seed, **kwargs)


@keras.saving.register_keras_serializable(package="dlkit")
class StochasticDepth(Dropping):
    """Drops a residual branch for whole samples in training.

        y = shortcut + StochasticDepth(rate)(branch)
        scale_at="train":  training  b branch / (1 - rate)   inference  branch
        scale_at="test":   training  b branch                inference  (1 - rate) branch
        b = 0 with probability rate, else 1, drawn for each sample

    Regularises very deep residual networks; rates usually grow linearly with depth, from 0 to the last block's. The
    paper scales at test time; scaling in training gives the same expectation and leaves exports untouched.

    Args:
        rate: probability that a sample skips the branch, in [0, 1]. 1 minus the paper's survival probability.
        scale_at: "train" or "test", see above.
        seed: of the draws; None draws one.
        **kwargs: `name`, `dtype`.

    Input and output: any shape; the first axis is the batch.

    Raises:
        InputError: rate outside [0, 1] or an unknown `scale_at`.

    Example:
        >>> import numpy as np
        >>> y = keras.ops.convert_to_numpy(StochasticDepth(0.5, seed=1)(np.ones((4, 3), "float32"), training=True))
        >>> all(len(set(row)) == 1 and row[0] in (0.0, 2.0) for row in y.tolist())
        True

    Reference: G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger, "Deep Networks with Stochastic Depth", 2016, eq. 2
    and 5, https://arxiv.org/abs/1603.09382. Lecture 000 (E. Sokolov), section 8.3 (residual branches).
    """

    def __init__(self, rate: float, scale_at: str = "train", seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, scale_at, seed, **kwargs)

    def noise_shape(self, inputs: Any) -> Any:
        return (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
