"""Gradients of convolutions as matrix products, where these are faster on processors than oneDNN's own kernels."""

import contextlib
import math
from typing import Any

import tensorflow as tf

from dlkit.layers._fast import in_bfloat16

_POSITIONS = 1024  # of a 1x1 convolution's output: on larger maps the two ways are level
_GRADIENT = "DlkitConv2D"


def fast_gradients() -> contextlib.AbstractContextManager[Any]:
    """Lets `tf.gradients` differentiate the convolutions that are traced inside the block by matrix products.

    Only where that is faster, as measured: 1x1 convolutions on maps of at most 1024 positions, and in bfloat16 the
    kernels' gradients of wider convolutions with stride 1 on maps with fewer positions than channels. A
    `tf.GradientTape` takes no notice of it. On a GPU the block changes nothing.
    """
    if tf.config.list_physical_devices("GPU"):
        return contextlib.nullcontext()
    return tf.compat.v1.get_default_graph().gradient_override_map({"Conv2D": _GRADIENT})


@tf.RegisterGradient(_GRADIENT)
def _gradient(op: Any, dy: Any) -> tuple[Any, Any]:
    """Returns the gradients of y = x * kernel for x and the kernel."""
    x, kernel = op.inputs
    positions = _positions(op)
    if positions <= _POSITIONS and kernel.shape[:2] == (1, 1):
        return _of_pointwise(x, kernel, dy, op.get_attr("strides"))
    names = ("strides", "padding", "explicit_paddings", "dilations", "data_format", "use_cudnn_on_gpu")
    same = {name: op.get_attr(name) for name in names}
    into = tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **same)
    wide = positions < math.inf and positions < min(kernel.shape[2:])
    if wide and op.get_attr("strides") == [1, 1, 1, 1] and in_bfloat16():
        return into, _of_taps(x, kernel.shape, dy, op.get_attr("padding") == b"SAME")
    weights = tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=tf.shape(kernel), out_backprop=dy, **same)
    return into, weights


def _positions(op: Any) -> float:
    """Returns how many pixels an output map has; infinity where this is no plain convolution of known sizes."""
    x, kernel = op.inputs
    known = kernel.shape.is_fully_defined() and op.outputs[0].shape[1:].is_fully_defined()
    plain = op.get_attr("data_format") == b"NHWC" and op.get_attr("padding") in (b"SAME", b"VALID")
    if not (known and plain and op.get_attr("dilations") == [1, 1, 1, 1] and x.shape[-1] == kernel.shape[2]):
        return math.inf
    return float(math.prod(op.outputs[0].shape[1:3]))


def _of_pointwise(x: Any, kernel: Any, dy: Any, strides: list[int]) -> tuple[Any, Any]:
    """dx = dy kernel^T at the pixels that the strides meet; dkernel = x^T dy there."""
    channels, filters = kernel.shape[2:]
    window = {"ksize": [1, 1, 1, 1], "strides": strides, "padding": "SAME"}
    strided = strides != [1, 1, 1, 1]
    met = tf.raw_ops.AvgPool(value=x, **window) if strided else x  # the mean of one pixel
    flat = tf.reshape(dy, [-1, filters])
    into = tf.reshape(tf.matmul(flat, tf.reshape(kernel, [channels, filters]), transpose_b=True), tf.shape(met))
    if strided:
        into = tf.raw_ops.AvgPoolGrad(orig_input_shape=tf.shape(x), grad=into, **window)
    into.set_shape(x.shape)
    weights = tf.matmul(tf.reshape(met, [-1, channels]), flat, transpose_a=True)
    return into, tf.reshape(weights, kernel.shape)


def _of_taps(x: Any, shape: Any, dy: Any, padded: bool) -> Any:
    """dkernel[i, j] = (x shifted by i and j)^T dy, a product for each tap of the kernel."""
    height, width, channels, filters = shape
    rows, columns = dy.shape[1:3]
    if padded:
        x = tf.pad(x, [[0, 0], *([(n - 1) // 2, n // 2] for n in (height, width)), [0, 0]])
    flat = tf.reshape(dy, [-1, filters])
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    taps = [tf.matmul(tf.reshape(part, [-1, channels]), flat, transpose_a=True) for part in shifted]
    return tf.reshape(tf.stack(taps), shape)
