"""Gated linear units: GLU, ReGLU, GEGLU, SwiGLU, and the feed-forward block GatedMLP built of them."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dlkit.layers import _fast, _pointwise
from dlkit.layers._activations import gate, gelu, swish
from dlkit.layers._axes import channel_axis, number, positive


@functools.cache
def _without_parameter(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Returns (z, parameter) -> function(z), the same object for the same function."""
    return lambda z, parameter: function(z)


class Gated(keras.layers.Layer):
    """f(x W + b) * (x V + c) on the last axis; subclasses say what f is and which arguments their config has."""

    def __init__(self, units: int, use_bias: bool, kernel_initializer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = positive(units, "units", type(self).__name__, 64)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        n_in = input_shape[channel_axis(-1, input_shape, type(self).__name__)]
        for weight in ("gate_kernel", "value_kernel"):
            # a fresh initializer each, from the config: one instance gives W and V the same numbers
            start = self.kernel_initializer.clone() if weight == "value_kernel" else self.kernel_initializer
            setattr(self, weight, self.add_weight(shape=(n_in, self.units), name=weight, initializer=start))
        for weight in ("gate_bias", "value_bias"):
            zeros = self.add_weight(shape=(self.units,), name=weight, initializer="zeros") if self.use_bias else None
            setattr(self, weight, zeros)

    def gate_function(self) -> Callable[[Any, Any], Any]:
        """Returns f as a function of (z, parameter), the same object for equal layers."""
        raise NotImplementedError(f"{type(self).__name__} must say what its gate is")

    def gate_parameter(self) -> Any:
        """Returns the second argument of f: Swish's beta, None elsewhere."""
        return None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        z, value = ops.matmul(inputs, self.gate_kernel), ops.matmul(inputs, self.value_kernel)
        b, c = (self.gate_bias, self.value_bias) if self.use_bias else (None, None)
        function, parameter = self.gate_function(), self.gate_parameter()
        fast = _fast.may_compile(z, training)
        if self.use_bias and not (fast and keras.backend.standardize_dtype(z.dtype) == "float32"):
            # ops.add becomes a bias addition, which TensorFlow merges with the product; `+` does not
            z, value, b, c = ops.add(z, b), ops.add(value, c), None, None
        return _pointwise.gated_product(function, z, value, b, c, parameter) if fast else function(z, parameter) * value

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        own = {
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="dlkit")
class GLU(Gated):
    """Gates one affine map of the input by the sigmoid of another.

        y = f(x W + b) * (x V + c),  f the sigmoid by default

    In a transformer's feed-forward block `SwiGLU` and `GEGLU` did better in Shazeer's comparison; the sigmoid is the
    form of gated convolutions, `activation="linear"` the bilinear layer.

    Args:
        units: outputs of each of the two maps.
        activation: f, a name of `dlkit.layers.activation` without weights, or a function of a tensor.
        use_bias: whether b and c are learnt (initially 0).
        kernel_initializer: of W and V.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: W, V, b, c. Input (..., n_in) of any rank, output (..., units).

    Raises:
        InputError: units below 1, an unknown activation, an unknown last axis.

    Example:
        >>> import numpy as np
        >>> layer = GLU(1, use_bias=False)
        >>> layer.build((None, 1))
        >>> layer.set_weights([np.array([[0.0]]), np.array([[4.0]])])    # sigmoid(0) * 4
        >>> float(keras.ops.convert_to_numpy(layer(np.ones((1, 1), "float32")))[0, 0])
        2.0

    Reference: Y. Dauphin, A. Fan, M. Auli, D. Grangier, "Language Modeling with Gated Convolutional Networks", 2016,
    eq. 1, https://arxiv.org/abs/1612.08083; N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 4,
    https://arxiv.org/abs/2002.05202. Lecture 001 (E. Sokolov), "Nonlinearity".
    """

    def __init__(
        self,
        units: int,
        activation: str | Callable[[Any], Any] = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, use_bias, kernel_initializer, **kwargs)
        self.activation = activation
        self._function = _without_parameter(gate(activation))

    def gate_function(self) -> Callable[[Any, Any], Any]:
        return self._function

    def get_config(self) -> dict[str, Any]:
        f = self.activation
        return {**super().get_config(), "activation": f if isinstance(f, str) else keras.activations.serialize(f)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GLU":
        config = dict(config)
        if isinstance(config.get("activation"), dict):
            config["activation"] = keras.activations.deserialize(config["activation"])
        return super().from_config(config)


@keras.saving.register_keras_serializable(package="dlkit")
class ReGLU(Gated):
    """Gates one affine map of the input by the ReLU of another.

        y = max(0, x W + b) * (x V + c)

    The cheapest gate, exactly zero for half of the inputs; `SwiGLU` and `GEGLU` are its smooth siblings.

    Args:
        units: outputs of each of the two maps.
        use_bias: whether b and c are learnt (initially 0).
        kernel_initializer: of W and V.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: W, V, b, c. Input (..., n_in) of any rank, output (..., units).

    Raises:
        InputError: units below 1 or an unknown last axis.

    Example:
        >>> ReGLU(8).compute_output_shape((None, 5, 3))
        (None, 5, 8)

    Reference: N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5, https://arxiv.org/abs/2002.05202.
    Lecture 001 (E. Sokolov), "Nonlinearity".
    """

    def __init__(
        self, units: int, use_bias: bool = True, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(units, use_bias, kernel_initializer, **kwargs)

    def gate_function(self) -> Callable[[Any, Any], Any]:
        return _without_parameter(ops.relu)


@keras.saving.register_keras_serializable(package="dlkit")
class GEGLU(Gated):
    """Gates one affine map of the input by the GELU of another.

        y = GELU(x W + b) * (x V + c),  GELU(z) = z/2 * (1 + erf(z / sqrt(2)))

    As good as `SwiGLU` in Shazeer's comparison and a little dearer for the erf.

    Args:
        units: outputs of each of the two maps.
        use_bias: whether b and c are learnt (initially 0).
        kernel_initializer: of W and V.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: W, V, b, c. Input (..., n_in) of any rank, output (..., units).

    Raises:
        InputError: units below 1 or an unknown last axis.

    Example:
        >>> GEGLU(8).compute_output_shape((None, 5, 3))
        (None, 5, 8)

    Reference: N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5, https://arxiv.org/abs/2002.05202.
    Lecture 001 (E. Sokolov), "Nonlinearity".
    """

    def __init__(
        self, units: int, use_bias: bool = True, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(units, use_bias, kernel_initializer, **kwargs)

    def gate_function(self) -> Callable[[Any, Any], Any]:
        return _without_parameter(gelu)


@keras.saving.register_keras_serializable(package="dlkit")
class SwiGLU(Gated):
    """Gates one affine map of the input by the Swish of another.

        y = Swish_beta(x W + b) * (x V + c),  Swish_beta(z) = z * sigmoid(beta z)

    The gate of today's transformers' feed-forward blocks; see `GatedMLP` for the whole block.

    Args:
        units: outputs of each of the two maps. To keep the parameters of a plain block of h hidden units with two
            matrices, take 2h/3.
        beta: steepness of Swish; 1 is SiLU.
        trainable_beta: whether the scalar beta is learnt; it is then the last weight.
        use_bias: whether b and c are learnt (initially 0). The paper's experiments leave them out.
        kernel_initializer: of W and V.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: W, V, b, c, beta (b and c with `use_bias`, beta if learnt). Input (..., n_in) of any rank, output
    (..., units).

    Raises:
        InputError: units below 1, beta no finite number, or an unknown last axis.

    Example:
        >>> layer = SwiGLU(4, trainable_beta=True)
        >>> layer.build((None, 3))
        >>> [w.name for w in layer.weights]
        ['gate_kernel', 'value_kernel', 'gate_bias', 'value_bias', 'beta']

    Reference: N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5, https://arxiv.org/abs/2002.05202.
    Lecture 001 (E. Sokolov), "Nonlinearity".
    """

    def __init__(
        self,
        units: int,
        beta: float = 1.0,
        trainable_beta: bool = False,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, use_bias, kernel_initializer, **kwargs)
        self.initial_beta = number(beta, "beta", "SwiGLU", -1e30, 1e30, 1.0)
        self.trainable_beta = bool(trainable_beta)
        self.beta: Any = None

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.trainable_beta:
            start = keras.initializers.Constant(self.initial_beta)
            self.beta = self.add_weight(shape=(), name="beta", initializer=start)

    def gate_function(self) -> Callable[[Any, Any], Any]:
        return swish

    def gate_parameter(self) -> Any:
        return self.initial_beta if self.beta is None else self.beta

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.initial_beta, "trainable_beta": self.trainable_beta}


@keras.saving.register_keras_serializable(package="dlkit")
class GatedMLP(keras.layers.Layer):
    """Expands each vector by a gated linear unit and projects it back: a transformer's feed-forward block.

        y = (f(x W + b) * (x V + c)) W_2 + b_2

    Args:
        hidden_units: width of the gated layer. 8/3 of the model's width has the parameters of the classic block of 4.
        units: outputs; None keeps the input's last axis, so that a residual can be added.
        activation: f, a name of `dlkit.layers.activation` without weights, or a function. "silu" makes it SwiGLU.
        use_bias: whether the three maps have an offset. False, as in the paper.
        dropout: fraction of the gated values dropped in training.
        kernel_initializer: of the three matrices.
        seed: of the dropout; None draws one.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: W, V, (b, c,) W_2 (, b_2). Input (..., n_in) of any rank, output (..., units).

    Raises:
        InputError: a width below 1, dropout outside [0, 1], an unknown activation, an unknown last axis.

    Example:
        >>> block = GatedMLP(16)
        >>> block.build((None, 10, 6))
        >>> [tuple(w.shape) for w in block.weights]
        [(6, 16), (6, 16), (16, 6)]

    Reference: N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 6, https://arxiv.org/abs/2002.05202.
    Lecture 001 (E. Sokolov), "Nonlinearity".
    """

    def __init__(
        self,
        hidden_units: int,
        units: int | None = None,
        activation: str | Callable[[Any], Any] = "silu",
        use_bias: bool = False,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_units = positive(hidden_units, "hidden_units", "GatedMLP", 64)
        self.units = None if units is None else positive(units, "units", "GatedMLP", 64)
        self.dropout = number(dropout, "dropout", "GatedMLP", 0.0, 1.0, 0.1)
        self.use_bias, self.seed = bool(use_bias), seed
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.gated = GLU(
            self.hidden_units, activation, use_bias, self.kernel_initializer, dtype=self.dtype_policy, name="gated"
        )
        self._dropped = keras.layers.Dropout(self.dropout, seed=seed, dtype=self.dtype_policy) if dropout else None
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        units = self.units or input_shape[channel_axis(-1, input_shape, "GatedMLP")]
        self.gated.build(input_shape)
        self.project = keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name="project",
        )
        self.project.build((*input_shape[:-1], self.hidden_units))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        hidden = self.gated(inputs, training=training)
        if self._dropped is not None:
            hidden = self._dropped(hidden, training=training)
        return self.project(hidden)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units or input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        own = {
            "hidden_units": self.hidden_units,
            "units": self.units,
            "activation": self.gated.get_config()["activation"],
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GatedMLP":
        config = dict(config)
        if isinstance(config.get("activation"), dict):
            config["activation"] = keras.activations.deserialize(config["activation"])
        return super().from_config(config)
