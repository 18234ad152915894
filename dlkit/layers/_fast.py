"""The TensorFlow backend's fast paths; each function equals its namesake in `_plain`. TensorFlow loads on first use.

Three kinds of computation, chosen while a graph is traced:

- Training (`training` is True, or was not said): `_jitted`, two XLA-compiled functions forward and two backward, shared
  by all layers of the same settings. A custom gradient keeps the input and the statistics, nothing else.
- Inference (`training=False`: predict, evaluate, exports) and whatever the above does not cover (a channel axis that
  is not the last, an unknown spatial size, `tf.distribute`, a GPU): standard TensorFlow operations and their gradients.
- Eagerly: the reference in `_plain`, which needs no compilation.
  `_recomputed` keeps the input alone for the backward pass, where the tape would hold six tensors for GroupNorm.

How the compiled functions are written is told in `_compiled`. Every statistic is taken of the input less a nearby value
of the same group, so that a large mean costs no accuracy.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from dlkit.layers import _compiled, _onednn, _plain

Tensor = Any

BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"  # TensorFlow's name of the graph optimiser's option
_HALF_AND_SINGLE = ("float32", "bfloat16", "float16")
_state = {"xla": True}


def available() -> bool:
    """Tells whether these functions can run here: on the TensorFlow backend."""
    return keras.backend.backend() == "tensorflow"


@contextmanager
def standard_ops() -> Iterator[None]:
    """Traces layers within the block with standard operations only, whatever `training` is.

    `training=False` does that by itself, and so do Keras' and TensorFlow's exporters; this is for graphs that are
    traced first with training unsaid and saved later. Other backends have standard operations only.

    Example:
        >>> with standard_ops():
        ...     pass    # trace the function to export here
    """
    before, _state["xla"] = _state["xla"], False
    try:
        yield
    finally:
        _state["xla"] = before


def _may_jit(x: Tensor, training: bool | None) -> bool:
    """Tells whether this trace should use the compiled functions; see the module's first lines."""
    if training is False or not _state["xla"] or _has_gpu() or _exporting():
        return False
    import tensorflow as tf

    known = all(n for n in x.shape[1:]) and len(x.shape) > 1
    return known and _narrow(x) and not _eagerly() and not tf.distribute.has_strategy()


def _narrow(x: Tensor) -> bool:
    return keras.backend.standardize_dtype(x.dtype) in _HALF_AND_SINGLE


def _eagerly() -> bool:
    import tensorflow as tf

    return bool(tf.executing_eagerly())


@functools.cache
def _has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _exporting() -> bool:
    """Tells whether a SavedModel is being written further up the stack (asked once per trace)."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        if "/tensorflow/python/saved_model/" in path or "/keras/src/export/" in path:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _f32(x: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.cast(x, tf.float32)


def _parameter(value: Tensor | None, otherwise: float, channels: int) -> Tensor:
    """Returns a float32 tensor for a weight of one number per channel, or a constant in place of a missing one."""
    import tensorflow as tf

    if value is None:
        return tf.fill([channels], otherwise)
    return tf.cast(tf.convert_to_tensor(value), tf.float32)


def unrecorded(*tensors: Tensor) -> list[Tensor]:
    """Hides from the tapes what a custom gradient computes: they would hold it, or prepare its body's derivatives."""
    import tensorflow as tf

    return [tf.stop_gradient(t) for t in tensors]


def may_compile(x: Tensor, training: bool | None) -> bool:
    """Tells whether a layer may call `gated_product` in this trace."""
    return available() and _may_jit(x, training)


def _recomputed(function: Callable[..., Tensor], training: bool | None, *inputs: Tensor | None) -> Tensor:
    """Returns function(*inputs); eagerly its gradient holds the inputs alone and computes the function again."""
    if training is False or not _eagerly():
        return function(*inputs)
    import tensorflow as tf

    @tf.custom_gradient
    def lean(*given: Tensor) -> Any:
        def call(*values: Tensor) -> Tensor:
            rest = iter(values)
            return function(*(None if t is None else next(rest) for t in inputs))

        def gradient(dy: Tensor) -> list[Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(given)
                y = call(*given)
            return tape.gradient(y, given, dy, unconnected_gradients="zero")

        return call(*unrecorded(*given)), gradient

    return lean(*(tf.convert_to_tensor(t) for t in inputs if t is not None))


def rms_norm(x: Tensor, scale: Tensor | None, axes: Sequence[int], epsilon: float, training: bool | None) -> Tensor:
    """Returns x / sqrt(mean(x**2, axes) + epsilon) * scale."""
    if tuple(axes) == (len(x.shape) - 1,) and _may_jit(x, training):
        channels = x.shape[-1]
        parameters = _parameter(scale, 1.0, channels), _parameter(None, 0.0, channels)
        return _jitted("features", epsilon, False, center=False)(x, *parameters)
    return _recomputed(lambda t, g: _plain.rms_norm(t, g, axes, epsilon), training, x, scale)


def layer_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axes: Sequence[int], epsilon: float, training: bool | None
) -> Tensor:
    """Returns (x - mean) / sqrt(variance + epsilon) * gamma + beta with the statistics of `axes`."""
    if tuple(axes) != (len(x.shape) - 1,) or _eagerly() or not _narrow(x):
        return _recomputed(lambda t, g, b: _plain.layer_norm(t, g, b, axes, epsilon), training, x, gamma, beta)
    channels = x.shape[-1]
    parameters = _parameter(gamma, 1.0, channels), _parameter(beta, 0.0, channels)
    if _may_jit(x, training):
        return _jitted("features", epsilon, _in_one_kernel(x), center=True)(x, *parameters)
    return _layer_norm_standard(x, *parameters, epsilon)


def _in_one_kernel(x: Tensor) -> bool:
    """Tells whether oneDNN's layer normalisation serves: in float32, since in half precision it would round gamma."""
    import tensorflow as tf

    return bool(x.dtype == tf.float32 and _onednn.fuses(tf))


def group_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    groups: int,
    axis: int,
    epsilon: float,
    training: bool | None,
) -> Tensor:
    """Returns the input normalised with the statistics of each sample's groups of channels."""
    if axis != len(x.shape) - 1 or _eagerly() or not _narrow(x):
        return _recomputed(lambda t, g, b: _plain.group_norm(t, g, b, groups, axis, epsilon), training, x, gamma, beta)
    channels = x.shape[-1]
    parameters = _parameter(gamma, 1.0, channels), _parameter(beta, 0.0, channels)
    if _may_jit(x, training):
        return _jitted("positions", epsilon, False, groups=groups)(x, *parameters)
    return _group_norm_standard(x, *parameters, groups, epsilon)


def batch_norm_training(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns output, mean and biased variance from FusedBatchNormV3, which runs with the channels last.

    The kernel returns the unbiased variance, N/(N-1) times the batch's: that factor is taken back.
    """
    import tensorflow as tf

    if axis != len(x.shape) - 1 or not _narrow(x):
        return _plain.batch_norm_training(x, gamma, beta, axis, epsilon)
    zero, one = _parameter(None, 0.0, x.shape[-1]), _parameter(None, 1.0, x.shape[-1])
    y, mean, unbiased = _fused_batch_norm(x, gamma, beta, zero, one, epsilon, True)
    sizes = x.shape[:-1]
    leading = math.prod(sizes) if sizes.is_fully_defined() else tf.reduce_prod(tf.shape(x)[:-1])
    count = tf.cast(leading, tf.float32)
    return y, mean, unbiased * tf.maximum(count - 1.0, 1.0) / tf.maximum(count, 1.0)


def scale_shift(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    axis: int,
    epsilon: float,
) -> Tensor:
    """Returns gamma * (x - mean) / sqrt(variance + epsilon) + beta with one number of each per channel."""
    if axis != len(x.shape) - 1 or not _narrow(x):
        return _plain.scale_shift(x, mean, variance, gamma, beta, axis, epsilon)
    return _fused_batch_norm(x, gamma, beta, mean, variance, epsilon, False)[0]


def _fused_batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs FusedBatchNormV3 on an input of any rank with the channels last.

    From 128 channels it is faster on rows. At inference a half-precision picture and one that a convolution has just
    made keep their shape: the graph optimiser merges the kernel with the ReLU behind it and the convolution in front.

    Where 16 does not divide the channels, oneDNN's kernel for half precision is up to ten times slower than that for
    float32, which is taken instead.
    """
    import tensorflow as tf

    channels = x.shape[-1]
    in_single = channels % 16 and not _has_gpu() and (x.dtype != tf.float32 or in_bfloat16())
    merged = not training and not in_single and (x.dtype != tf.float32 or _convolved(x))
    as_is = len(x.shape) == 4 and (channels < 128 or merged)
    inputs = x if as_is else tf.reshape(x, [-1, 1, 1, channels])
    vectors = _parameter(gamma, 1.0, channels), _parameter(beta, 0.0, channels), _f32(mean), _f32(variance)
    if in_single and in_bfloat16() and not _eagerly():
        y, *statistics = _kept_in_single(epsilon, training)(_f32(inputs), *vectors)
    else:
        y, *statistics = _batch_norm_op(_f32(inputs) if in_single else inputs, *vectors, epsilon, training)[:3]
    y = tf.cast(y if as_is else tf.reshape(y, tf.shape(x)), x.dtype)
    y.set_shape(x.shape)
    return y, *statistics


def _batch_norm_op(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, epsilon: float, training: bool
) -> Any:
    import tensorflow as tf

    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=training
    )


def in_bfloat16() -> bool:
    """Tells whether the graph optimiser will put what is traced now into bfloat16."""
    import tensorflow as tf

    return bool(tf.config.optimizer.get_experimental_options().get(BFLOAT16, False))


@functools.lru_cache(maxsize=64)
def _kept_in_single(epsilon: float, training: bool) -> Callable[..., Any]:
    """Returns the kernel, and its gradient, as functions that the graph optimiser does not see through."""
    import tensorflow as tf

    apart = functools.partial(tf.function, autograph=False, experimental_attributes={"_noinline": True})

    @apart
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
        return list(_batch_norm_op(x, gamma, beta, mean, variance, epsilon, training))

    @apart
    def backward(dy: Tensor, x: Tensor, gamma: Tensor, *kept: Tensor) -> list[Tensor]:
        names = ("reserve_space_1", "reserve_space_2", "reserve_space_3")
        found = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy, x=x, scale=gamma, epsilon=epsilon, is_training=training,
            **dict(zip(names, kept, strict=True)),
        )  # fmt: skip
        return list(found[:3])

    @tf.custom_gradient
    def normalised(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> Any:
        y, *statistics, one, two, three = forward(*unrecorded(x, gamma, beta, mean, variance))
        kept = (one, two, three) if training else (mean, variance, three)

        def gradient(dy: Tensor, *_: Tensor) -> list[Tensor]:
            return [*backward(dy, x, gamma, *kept), tf.zeros_like(mean), tf.zeros_like(variance)]

        return (y, *statistics), gradient

    return normalised


def _convolved(x: Tensor) -> bool:
    """Tells whether a graph's tensor comes from a convolution, at most one operation (a bias, a cast) between."""
    if not hasattr(x, "op"):
        return False
    near = [x.op, *(t.op for t in x.op.inputs)]
    return any(op.type in ("Conv2D", "DepthwiseConv2dNative") for op in near)


def _layer_norm_standard(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the last axis; gamma and beta ride on the fused kernel, one pass for both."""
    import tensorflow as tf

    d = _f32(x)
    d = d - tf.reduce_mean(d, axis=-1, keepdims=True)
    d = d * tf.math.rsqrt(tf.reduce_mean(tf.square(d), axis=-1, keepdims=True) + epsilon)
    zero, one = tf.zeros_like(gamma), tf.ones_like(gamma)
    return tf.cast(_fused_batch_norm(d, gamma, beta, zero, one, 0.0, False)[0], x.dtype)


def _group_norm_standard(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float) -> Tensor:
    """Group normalisation with the channels last: sums over positions as matrix products, then y = a x + b."""
    import tensorflow as tf

    channels, shape = x.shape[-1], tf.shape(x)
    w = tf.reshape(_f32(x), [shape[0], -1, channels])
    count = tf.shape(w)[1]
    ones = tf.fill([1, 1, count], 1.0 / tf.cast(count, tf.float32))
    mean = _compiled.group_mean(tf, tf.matmul(ones, w)[:, 0], groups)[:, None]
    square = tf.matmul(ones, tf.math.squared_difference(w, mean))[:, 0]
    variance = _compiled.group_mean(tf, square, groups)[:, None]
    a = tf.math.rsqrt(variance + epsilon) * gamma
    y = tf.reshape(tf.cast(w * a + (beta - mean * a), x.dtype), shape)
    y.set_shape(x.shape)
    return y


@functools.cache
def _jitted(
    kind: str, epsilon: float, in_one_kernel: bool, **settings: Any
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns f(x, gamma, beta) made of two compiled functions forward and two backward.

    With `in_one_kernel` the forward pass is that of `_onednn`, and the backward pass takes the statistics itself.

    The backward pass has a gradient of its own, that of the same formula in standard operations: the statistics
    it receives depend on x, which automatic differentiation would not know.
    """
    import tensorflow as tf

    kernel = (_compiled.features if kind == "features" else _compiled.positions)(tf, epsilon, **settings)
    statistics, normalise, gradient_sums, gradient = (
        tf.function(f, jit_compile=True, autograph=False) for f in kernel[:4]
    )
    one_kernel = _onednn.layer_norm(tf, epsilon)

    @tf.custom_gradient
    def backward(x: Tensor, gamma: Tensor, beta: Tensor, dy: Tensor, *kept: Tensor) -> Any:
        def second(*upstream: Tensor) -> Any:
            with tf.GradientTape() as outer:
                outer.watch([x, gamma, beta, dy])
                with tf.GradientTape() as inner:
                    inner.watch([x, gamma, beta])
                    y = kernel.standard(x, gamma, beta)
                first = inner.gradient(y, [x, gamma, beta], dy, unconnected_gradients="zero")
            found = outer.gradient(first, [x, gamma, beta, dy], list(upstream), unconnected_gradients="zero")
            return (*found, *(None for _ in kept))

        t, g, b, dt, *rest = unrecorded(x, gamma, beta, dy, *kept)
        arguments, dgamma, dbeta = gradient_sums(t, g, dt, *(rest or statistics(t, g, b)[0]))
        dx = gradient(t, dt, *arguments)
        dx.set_shape(x.shape)
        return (dx, dgamma, dbeta), second

    @tf.custom_gradient
    def normalised(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        t, g, b = unrecorded(x, gamma, beta)
        kept, arguments = ((), ()) if in_one_kernel else statistics(t, g, b)
        y = one_kernel(t, g, b) if in_one_kernel else normalise(t, *arguments)
        y.set_shape(x.shape)
        return y, lambda dy: backward(x, gamma, beta, dy, *kept)

    return normalised
