"""The parts every builder shares: named convolutions with symmetric padding, norms, activations, heads, size checks."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from dlkit import initializers, layers
from dlkit._errors import InputError, unknown

Tensor = Any

# activations that are never negative: zero padding in front of a maximum changes nothing
_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "softplus")


class SmallMapWarning(UserWarning):
    """The last feature map has one pixel: the convolutions of the last stage see mostly their own padding."""


@keras.saving.register_keras_serializable(package="dlkit")
class EdgePadding(keras.layers.Layer):
    """Repeats the outermost pixel once on every side, so that a 3-wide maximum ignores the padding.

    The window at an edge holds the edge pixel anyway, so its copy cannot win against the true maximum: this is padding
    by minus infinity, without an infinity that quantisation and half precision would have to carry.

    >>> import numpy as np
    >>> np.asarray(EdgePadding()(np.array([-3.0, -1.0], "float32").reshape(1, 2, 1))).ravel().tolist()
    [-3.0, -3.0, -1.0, -1.0]
    """

    def call(self, inputs: Tensor) -> Tensor:
        x = inputs
        for axis in range(1, len(x.shape) - 1):
            first = ops.take(x, ops.arange(1), axis=axis)
            last = ops.take(x, ops.arange(1) + (ops.shape(x)[axis] - 1), axis=axis)
            x = ops.concatenate([first, x, last], axis=axis)
        return x

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        batch, *spatial, channels = input_shape
        return (batch, *(None if n is None else n + 2 for n in spatial), channels)


@keras.saving.register_keras_serializable(package="dlkit")
class GroupedConv2D(keras.layers.Conv2D):
    """Is `keras.layers.Conv2D`; on TensorFlow each of its groups is a convolution of its own.

    TensorFlow has no kernel for groups on processors: Keras compiles one with XLA, many times slower, which an export
    would have to carry. Made for few groups.

    >>> import numpy as np
    >>> layer = GroupedConv2D(2, 1, groups=2, kernel_initializer="ones")
    >>> np.asarray(layer(np.array([1.0, 2.0, 3.0, 4.0], "float32").reshape(1, 1, 1, 4))).ravel().tolist()
    [3.0, 7.0]
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        if keras.backend.backend() != "tensorflow" or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        convolve = super().convolution_op
        pairs = zip(*(ops.split(tensor, self.groups, axis=-1) for tensor in (inputs, kernel)), strict=True)
        return ops.concatenate([convolve(x, part) for x, part in pairs], axis=-1)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a builder exchanges by name: the norm, the activation, the initializer and the width."""

    norm: Any = "batch"
    activation: Any = "relu"
    initializer: Any = "he"
    width: float = 1.0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.width, (int, float)) or not 0 < self.width < math.inf:
            raise InputError(f"width={self.width!r} must be a positive number; 1.0 gives the paper's channels")

    @property
    def bias(self) -> bool:
        """Whether convolutions carry a bias: a norm's offset makes it superfluous."""
        return self.norm in (None, "none")

    def channels(self, paper: int, multiple: int = 2) -> int:
        """Returns the paper's channel count times `width`, rounded to a positive multiple."""
        if self.width == 1:
            return paper
        return max(multiple, multiple * round(paper * self.width / multiple))

    def weights(self) -> Any:
        """Returns a new initializer for each kernel: one shared object would draw equal numbers for equal shapes."""
        return initializers.get(self.initializer)

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel: int | Sequence[int],
        *,
        name: str,
        strides: int = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        bias_initializer: Any = "zeros",
    ) -> Tensor:
        """Returns a convolution of any rank; `padding` pixels on both sides, None keeps the size at stride 1."""
        if groups > 1 and (x.shape[-1] % groups or filters % groups):
            raise InputError(
                f"{name}: {groups} groups need channel counts that {groups} divides, got {x.shape[-1]} in and "
                f"{filters} out"
            )
        rank = len(x.shape) - 2
        size = _per_axis(kernel, rank)
        pad = tuple(dilation * (k - 1) // 2 for k in size) if padding is None else _per_axis(padding, rank)
        keeps = all(2 * p == dilation * (k - 1) for p, k in zip(pad, size, strict=True))
        same = strides == 1 and keeps
        if any(pad) and not same:
            x = zero_padding(x, pad, f"{name}_pad")
        return (GroupedConv2D if groups > 1 and rank == 2 else RANKED["Conv"][rank])(
            filters,
            size,
            strides=strides,
            padding="same" if same and any(pad) else "valid",
            dilation_rate=dilation,
            groups=groups,
            use_bias=self.bias if bias is None else bias,
            kernel_initializer=self.weights(),
            bias_initializer=bias_initializer,
            name=name,
        )(x)

    def normalize(self, x: Tensor, name: str, zero: bool = False) -> Tensor:
        """Returns the norm of x; `zero` starts its factor at 0, which makes a residual branch begin as nothing."""
        if self.norm in (None, "none"):
            return x
        kw: dict[str, Any] = {"name": name} if self.epsilon is None else {"name": name, "epsilon": self.epsilon}
        if zero and self.norm != "response":
            kw["gamma_initializer"] = "zeros"
        if self.norm == "group":
            # the paper's 32, fewer where a group would hold a single channel, whose deviation from itself is 0
            kw["groups"] = 1 if x.shape[-1] % 2 else math.gcd(32, x.shape[-1] // 2)
        return layers.norm(self.norm, **kw)(x)

    def activate(self, x: Tensor, name: str) -> Tensor:
        """Returns the activation of x; a learnt slope (prelu) is one per channel."""
        kw: dict[str, Any] = {"name": name}
        if self.activation == "prelu" and len(x.shape) > 2:
            kw["shared_axes"] = list(range(1, len(x.shape) - 1))
        return layers.activation(self.activation, **kw)(x)

    def max_pool(self, x: Tensor, size: int, strides: int, *, name: str, padding: int = 0) -> Tensor:
        """Returns the maximum over windows; padded pixels never win."""
        rank = len(x.shape) - 2
        if padding:
            plain = isinstance(self.activation, str) and self.activation in _NON_NEGATIVE
            pad = f"{name}_pad"
            x = zero_padding(x, (padding,) * rank, pad) if plain else EdgePadding(name=pad)(x)
        return RANKED["MaxPooling"][rank](size, strides, padding="valid", name=name)(x)

    def dense(self, x: Tensor, units: int, *, name: str, bias: bool = True, bias_initializer: Any = "zeros") -> Tensor:
        """Returns a fully connected layer."""
        return keras.layers.Dense(
            units, use_bias=bias, kernel_initializer=self.weights(), bias_initializer=bias_initializer, name=name
        )(x)


RANKED: dict[str, dict[int, Callable[..., keras.layers.Layer]]] = {
    kind: {rank: getattr(keras.layers, f"{kind}{rank}D") for rank in (1, 2, 3)}
    for kind in ("Conv", "MaxPooling", "AveragePooling", "GlobalAveragePooling", "ZeroPadding")
}


def zero_padding(x: Tensor, pad: Sequence[int], name: str) -> Tensor:
    """Returns x with zeros on both sides of every position axis, as the papers' code pads."""
    rank = len(x.shape) - 2
    return RANKED["ZeroPadding"][rank](pad[0] if rank == 1 else tuple(pad), name=name)(x)


def average_pool(x: Tensor, size: int, strides: int, *, name: str, padding: str = "valid") -> Tensor:
    """Returns the mean over windows; with "same" a window at the edge averages only what exists."""
    return RANKED["AveragePooling"][len(x.shape) - 2](size, strides, padding=padding, name=name)(x)


def global_pool(x: Tensor, name: str = "pool") -> Tensor:
    """Returns the mean over all positions."""
    return RANKED["GlobalAveragePooling"][len(x.shape) - 2](name=name)(x)


def classifier(parts: Parts, x: Tensor, classes: int, activation: Any, name: str) -> Tensor:
    """Returns the last fully connected layer and its activation in float32, whatever the policy."""
    return answer(parts.dense(x, classes, name=name), activation, "predictions")


def answer(x: Tensor, activation: Any, name: str) -> Tensor:
    """Returns the activation of a network's output in float32, whatever the policy; None leaves the values.

    Raises:
        InputError: an unknown name, with the nearest of Keras'.
    """
    try:
        keras.activations.get(activation)
    except (TypeError, ValueError):
        helpers = ("get", "serialize", "deserialize")
        raise unknown(
            "activation of the output", activation,
            [known for known in dir(keras.activations) if known[0] != "_" and known not in helpers],
        ) from None  # fmt: skip
    return keras.layers.Activation(activation or "linear", dtype="float32", name=name)(x)


def image_input(input_shape: Sequence[int | None], builder: str, ranks: Sequence[int] = (2,)) -> Tensor:
    """Returns the input called "image" after checking its shape: positions, then channels."""
    shape = checked_shape(input_shape, builder, ranks)
    return keras.Input(shape, name="image")


def checked_shape(input_shape: Any, builder: str, ranks: Sequence[int] = (2,)) -> tuple[int | None, ...]:
    """Returns the shape as a tuple.

    Raises:
        InputError: it is no sequence of positive whole numbers (None for an unknown size), or has a wrong length.
    """
    example = (224, 224, 3)[-(max(ranks) + 1) :] if max(ranks) < 3 else (16, 112, 112, 3)
    try:
        shape = tuple(input_shape)
    except TypeError:
        raise InputError(f"{builder}: input_shape={input_shape!r} must be a tuple such as {example}") from None
    if len(shape) - 1 not in ranks:
        allowed = " or ".join(str(r + 1) for r in ranks)
        raise InputError(
            f"{builder}: input_shape={shape} has {len(shape)} numbers, expected {allowed}: sizes then channels, "
            f"without the batch, such as {example}"
        )
    sizes = [n for n in shape if n is not None]
    if shape[-1] is None or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise InputError(f"{builder}: input_shape={shape} must hold positive whole numbers and known channels")
    return shape


def check_classes(classes: Any, builder: str) -> None:
    """Refuses a class count that is no positive whole number."""
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise InputError(f"{builder}: classes={classes!r} must be a positive whole number, such as classes=10")


def check_size(builder: str, input_shape: Sequence[int | None], last: Callable[[int], int], advice: str = "") -> None:
    """Refuses an input that a stage has nothing left to shrink of, and warns about a last map of one pixel.

    Args:
        builder: name for the messages.
        input_shape: positions and channels.
        last: maps an input size to the size of the last map; 0 means that the input is too small.
        advice: what to do about a map of one pixel.
    """
    sizes = [n for n in input_shape[:-1] if n is not None]
    if not sizes:
        return
    if last(min(sizes)) < 1:
        smallest = next((n for n in range(min(sizes), 4097) if last(n) >= 1), "more than 4096")
        raise InputError(
            f"{builder}: an input of {' x '.join(map(str, input_shape[:-1]))} pixels is too small; the smallest is "
            f"{smallest} pixels a side{advice and '. ' + advice}"
        )
    if max(last(n) for n in sizes) == 1:
        roomy = next((n for n in range(max(sizes), 4097) if last(n) > 1), "more than 4096")
        warnings.warn(
            f"{builder}: at {' x '.join(map(str, input_shape[:-1]))} pixels the last map is 1x1, so the last stage "
            f"convolves padding; {roomy} pixels a side give 2x2{advice and '. ' + advice}",
            SmallMapWarning,
            stacklevel=3,
        )


def out_size(n: int, kernel: int, strides: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Returns the output size of a convolution or pooling; 0 if the kernel does not fit.

        L_out = floor((L_in + 2 P - dilation (K - 1) - 1) / S) + 1

    Reference: lecture 000 (E. Sokolov), section 5.4.

    >>> out_size(224, 11, strides=4, padding=2), out_size(224, 7, strides=2, padding=3)
    (55, 112)
    """
    return max(0, (n + 2 * padding - dilation * (kernel - 1) - 1) // strides + 1)


def _per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)
