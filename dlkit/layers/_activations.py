"""Activations of the lectures' tables by name, Swish with a learnt beta, and Maxout."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError, unknown
from dlkit.layers import _fast, _pointwise
from dlkit.layers._axes import channel_axis, number, positive
from dlkit.layers._plain import wide


@keras.saving.register_keras_serializable(package="dlkit")
def gelu(x: Any) -> Any:
    """Returns x * Phi(x) = x/2 * (1 + erf(x / sqrt(2))), Phi the normal distribution function; float32 inside.

    Reference: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, section 2,
    https://arxiv.org/abs/1606.08415. Lecture 001 (E. Sokolov), table of nonlinearities. The exact form, not the
    tanh approximation, and written with erf so that it also exports to ONNX.
    """
    x = ops.convert_to_tensor(x)
    w = wide(x)
    return ops.cast(0.5 * w * (1.0 + ops.erf(w / math.sqrt(2.0))), x.dtype)


@keras.saving.register_keras_serializable(package="dlkit")
class Gelu(keras.layers.Activation):
    """Applies `gelu`; what `activation("gelu")` returns.

        y = x * Phi(x)

    On TensorFlow a training step reads x once and writes y once, and its backward pass keeps x alone: docs/layers.md
    has the times. Inference and exports are made of the standard operations.

    Args:
        **kwargs: `name`, `dtype`.

    Example:
        >>> round(float(Gelu()(keras.ops.ones((1, 1)))[0, 0]), 4)
        0.8413

    Reference: see `gelu`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gelu, **kwargs)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return _pointwise.pointwise(gelu, x) if _fast.may_compile(x, training) else gelu(x)

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "activation"}


@keras.saving.register_keras_serializable(package="dlkit")
class Swish(keras.layers.Layer):
    """Multiplies the input by a gate of itself whose steepness can be learnt.

        y = x * sigmoid(beta * x)

    Smooth, and not zero at negative inputs, so that gradients pass there. beta = 1 is SiLU, beta -> infinity tends to
    ReLU, beta = 0 is x / 2. Choose `activation("silu")` if beta shall stay 1.

    Args:
        beta: initial steepness. 1, the paper's start for a learnt beta.
        trainable: whether beta is learnt; False makes it a constant and the layer has no weight.
        per_channel: True learns one beta for each entry of the last axis, False one for the layer.
        **kwargs: `name`, `dtype`.

    Weights: beta, of shape () or (channels,), if trainable. Input and output: any shape.

    Raises:
        InputError: beta is no finite number, or `per_channel` meets an input of unknown last axis.

    Example:
        >>> import numpy as np
        >>> round(float(keras.ops.convert_to_numpy(Swish(trainable=False)(np.ones((1, 1), "float32")))[0, 0]), 4)
        0.7311

    Reference: P. Ramachandran, B. Zoph, Q. V. Le, "Searching for Activation Functions", 2017, section 3,
    https://arxiv.org/abs/1710.05941. Lecture 000 (E. Sokolov), section 3.2.
    """

    def __init__(self, beta: float = 1.0, trainable: bool = True, per_channel: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_beta = number(beta, "beta", "Swish", -1e30, 1e30, 1.0)
        self.learns_beta, self.per_channel = bool(trainable), bool(per_channel)
        self.supports_masking = True
        self.beta: Any = None

    def build(self, input_shape: Any) -> None:
        shape = (input_shape[channel_axis(-1, input_shape, "Swish")],) if self.per_channel else ()
        if self.learns_beta:
            start = keras.initializers.Constant(self.initial_beta)
            self.beta = self.add_weight(shape=shape, name="beta", initializer=start)

    def call(self, inputs: Any) -> Any:
        return swish(inputs, self.initial_beta if self.beta is None else self.beta)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"beta": self.initial_beta, "trainable": self.learns_beta, "per_channel": self.per_channel}
        frozen = {"frozen": True} if not self.trainable else {}  # `layer.trainable = False` survives a reload
        return {**super().get_config(), **own, **frozen}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Swish":
        config = dict(config)
        frozen = config.pop("frozen", False)
        layer = super().from_config(config)
        layer.trainable = not frozen
        return layer


def swish(x: Any, beta: Any) -> Any:
    """Returns x * sigmoid(beta * x); a beta of exactly 1 costs no product."""
    if isinstance(beta, float) and beta == 1.0:
        return ops.silu(x)
    return x * ops.sigmoid(ops.cast(beta, x.dtype) * x)


@keras.saving.register_keras_serializable(package="dlkit")
class Maxout(keras.layers.Layer):
    """Takes the largest of several learnt affine maps, for dense layers or for convolutions.

        y = max_j (x W_j + b_j),  j = 1 .. pieces

    Two pieces can form ReLU and |x|, more pieces any convex function; the price is `pieces` times the weights.

    Args:
        units: outputs (dense) or output channels (convolution).
        pieces: affine maps to choose from, from 1. The lectures' formula has 2.
        kernel_size: None acts on the last axis of an input of any rank; a whole number or a tuple convolves over the
            positions, channels last.
        strides: of the convolution, in positions.
        padding: "valid" or "same", of the convolution.
        use_bias: whether the maps have an offset (initially 0).
        kernel_initializer: of the weights.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: kernel, whose last axis holds W_1, then W_2, ... (`units` columns each), and bias in the same order.
    Input (..., n_in), output (..., units).

    Raises:
        InputError: units or pieces below 1, a kernel that does not fit the input's rank, an unknown last axis.

    Example:
        >>> import numpy as np
        >>> layer = Maxout(1, 2, use_bias=False)
        >>> layer.build((None, 1))
        >>> layer.set_weights([np.array([[1.0, -1.0]])])     # max(x, -x) = |x|
        >>> keras.ops.convert_to_numpy(layer(np.array([[-2.0], [3.0]], "float32"))).tolist()
        [[2.0], [3.0]]

    Reference: I. Goodfellow, D. Warde-Farley, M. Mirza, A. Courville, Y. Bengio, "Maxout Networks", 2013, section 3,
    https://arxiv.org/abs/1302.4389. Lecture 003 (M. Gushchin) and lecture 004 (I. Ivanov), table of activations.
    """

    def __init__(
        self,
        units: int,
        pieces: int,
        kernel_size: int | tuple[int, ...] | None = None,
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = positive(units, "units", "Maxout", 64)
        self.pieces = positive(pieces, "pieces", "Maxout", 2)
        self.kernel_size, self.strides = _sizes(kernel_size, "kernel_size"), _sizes(strides, "strides")
        if padding not in ("valid", "same"):
            raise unknown("padding of Maxout", padding, ("valid", "same"))
        self.padding, self.use_bias = padding, bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = kernel_size is None

    def build(self, input_shape: Any) -> None:
        n_in = input_shape[channel_axis(-1, input_shape, "Maxout")]
        width = self.units * self.pieces
        self.kernel = self.add_weight(
            shape=(*self._window(len(input_shape)), n_in, width), name="kernel", initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(shape=(width,), name="bias", initializer="zeros") if self.use_bias else None

    def _window(self, rank: int) -> tuple[int, ...]:
        """Returns the kernel's size on each axis of positions; empty for the dense form."""
        if self.kernel_size is None:
            return ()
        if rank < 3 or (isinstance(self.kernel_size, tuple) and len(self.kernel_size) != rank - 2):
            raise InputError(
                f"Maxout: kernel_size={self.kernel_size!r} does not fit an input of rank {rank}; it takes one size per "
                "axis of positions, for example kernel_size=3 with (None, 32, 32, 8), or None for the dense form"
            )
        return self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * (rank - 2)

    def call(self, inputs: Any) -> Any:
        if self.kernel_size is None:
            z = ops.matmul(inputs, self.kernel)
        else:
            z = ops.conv(inputs, self.kernel, self.strides, self.padding, data_format="channels_last")
        if self.bias is not None:
            z = ops.add(z, self.bias)
        return functools.reduce(ops.maximum, ops.split(z, self.pieces, axis=-1))

    def compute_output_shape(self, input_shape: Any) -> Any:
        window = self._window(len(input_shape))
        strides = self.strides if isinstance(self.strides, tuple) else (self.strides,) * len(window)
        grow = 0 if self.padding == "valid" else 1
        sizes = [
            None if n is None else -(-(n - (0 if grow else k - 1)) // s)
            for n, k, s in zip(input_shape[1:-1], window, strides, strict=False)
        ]
        middle = sizes if window else input_shape[1:-1]
        return (input_shape[0], *middle, self.units)

    def get_config(self) -> dict[str, Any]:
        own = {
            "units": self.units,
            "pieces": self.pieces,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
        return {**super().get_config(), **own}


def _sizes(value: Any, name: str) -> int | tuple[int, ...] | None:
    """Returns a size or a tuple of sizes, each from 1; None stays None."""
    if value is None and name == "kernel_size":
        return None
    if isinstance(value, (list, tuple)):
        return tuple(positive(v, name, "Maxout", 3) for v in value)
    return positive(value, name, "Maxout", 3)


def _leaky(x: Any) -> Any:
    return ops.leaky_relu(x, negative_slope=0.01)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "leaky_relu": _leaky,
    "elu": ops.elu,
    "selu": ops.selu,
    "gelu": gelu,
    "softplus": ops.softplus,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "silu": ops.silu,
    "linear": lambda x: x,
    "none": lambda x: x,
}


def _elementwise(function: str | Callable[[Any], Any]) -> Callable[..., keras.layers.Layer]:
    return functools.partial(keras.layers.Activation, function)


def _leaky_relu(negative_slope: float = 0.01, **kw: Any) -> keras.layers.Layer:
    return keras.layers.LeakyReLU(negative_slope=negative_slope, **kw)


ACTIVATIONS: dict[str, Callable[..., keras.layers.Layer]] = {
    "relu": keras.layers.ReLU,
    "leaky_relu": _leaky_relu,
    "prelu": keras.layers.PReLU,
    "elu": keras.layers.ELU,
    "selu": _elementwise("selu"),
    "gelu": Gelu,
    "softplus": _elementwise("softplus"),
    "sigmoid": _elementwise("sigmoid"),
    "tanh": _elementwise("tanh"),
    "silu": _elementwise("silu"),
    "swish": Swish,
    "softmax": keras.layers.Softmax,
    "linear": keras.layers.Identity,
    "none": keras.layers.Identity,
}


def activation(name: Any, /, **kw: Any) -> keras.layers.Layer:
    """Returns a new activation layer for a name, a layer class or a function of a tensor.

        relu        max(0, x)                             sigmoid   1 / (1 + exp(-x))
        leaky_relu  max(slope x, x), slope 0.01           tanh      2 sigmoid(2x) - 1
        prelu       max(0, x) + alpha min(0, x), alpha    silu      x sigmoid(x)
                    learnt per entry, initially 0         swish     x sigmoid(beta x), beta learnt
        elu         x, or alpha (exp(x) - 1) below 0      softplus  log(1 + exp(x))
        selu        1.0507 (x, or 1.67326 (exp(x) - 1))   softmax   exp(x_i) / sum_k exp(x_k), last axis
        gelu        x/2 (1 + erf(x / sqrt(2)))            none      x  (also "linear" and None)

    Args:
        name: one of the names above, a layer class (or a partial of one), or a function that maps a tensor to a
            tensor of the same shape. By position only, so that `name=` names the layer.
        **kw: passed to the layer: `name`, `dtype` and its own, for example `negative_slope=0.1`.

    Raises:
        InputError: the name is unknown (the known ones are listed), or a layer instance was given, whose weights would
            be shared between all places that use it.

    Example:
        >>> activation("leaky_relu", negative_slope=0.1, name="act1").name
        'act1'

    Reference: lecture 001 (E. Sokolov), table of nonlinearities; lectures 003 (M. Gushchin) and 004 (I. Ivanov),
    "Activation functions".
    """
    if isinstance(name, keras.layers.Layer):
        raise one_instance("activation", name)
    if name is None or isinstance(name, str):
        key = "none" if name is None else name.lower()
        if key not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
        return ACTIVATIONS[key](**kw)
    maker = name.func if isinstance(name, functools.partial) else name
    if inspect.isclass(maker) and issubclass(maker, keras.layers.Layer):
        return name(**kw)
    if callable(name):
        return keras.layers.Activation(name, **kw)
    raise InputError(f"activation: {name!r} is no name, layer class or function; known names: {', '.join(ACTIVATIONS)}")


def gate(name: Any) -> Callable[[Any], Any]:
    """Returns the activation of that name without weights as a function of a tensor, for gates inside a layer."""
    if callable(name):
        return name
    key = "none" if name is None else str(name).lower()
    if key not in FUNCTIONS:
        raise unknown("gate activation", name, FUNCTIONS)
    return FUNCTIONS[key]


def one_instance(kind: str, layer: keras.layers.Layer) -> InputError:
    """Returns the error for a layer instance where a recipe for new layers is needed."""
    cls = type(layer).__name__
    return InputError(
        f"{kind}: got the layer {layer.name!r} itself, which every use would share with its weights; pass its class "
        f"or a partial that makes a new one, for example functools.partial({cls}, ...)"
    )
