"""Activations and gated products that a training step computes in one compiled pass, and their gradients in another."""

import functools
from collections.abc import Callable
from typing import Any

from dlkit.layers import _fast

Tensor = Any


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns function(x), number by number, in one compiled pass, and its gradient in another."""
    return _jitted_pointwise(function)(x)


@functools.lru_cache(maxsize=64)
def _jitted_pointwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns f(x); its gradient keeps x."""
    import tensorflow as tf

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, dy)

    compiled, compiled_backward = (tf.function(f, jit_compile=True, autograph=False) for f in (function, backward))

    @tf.custom_gradient
    def pointwise(x: Tensor) -> Any:
        y = compiled(*_fast.unrecorded(x))
        y.set_shape(x.shape)
        return y, lambda dy: compiled_backward(dy, x)

    return pointwise


def gated_product(
    function: Callable[..., Tensor],
    z: Tensor,
    value: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    parameter: Any,
) -> Tensor:
    """Returns function(z + b, parameter) * (value + c) in one compiled pass, and its gradient in another.

    In half precision the forward pass stays with the standard operations, which are faster there.
    """
    import tensorflow as tf

    constant = parameter if isinstance(parameter, float) else None
    rest = [tf.zeros([], z.dtype) if t is None else tf.cast(tf.convert_to_tensor(t), z.dtype) for t in (b, c)]
    if parameter is not None and constant is None:
        rest.append(tf.cast(tf.convert_to_tensor(parameter), z.dtype))
    return _jitted_product(function, constant)(z, value, *rest)


@functools.lru_cache(maxsize=64)
def _jitted_product(function: Callable[..., Tensor], constant: float | None) -> Callable[..., Tensor]:
    """Returns f(z, value, b, c[, parameter]); its gradient keeps z and value and computes the rest again."""
    import tensorflow as tf

    def product(z: Tensor, value: Tensor, b: Tensor, c: Tensor, parameter: Any = constant) -> Tensor:
        return function(z + b, parameter) * (value + c)

    def backward(dy: Tensor, *inputs: Tensor) -> list[Tensor]:
        wanted = [*inputs[:2], *inputs[4:]]  # the offsets' gradients are sums of the first two: a library call below
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            y = product(*inputs)
        return tape.gradient(y, wanted, dy, unconnected_gradients="zero")

    compiled, compiled_backward = (tf.function(f, jit_compile=True, autograph=False) for f in (product, backward))

    @tf.custom_gradient
    def gated(*inputs: Tensor) -> Any:
        y = (compiled if inputs[0].dtype == tf.float32 else product)(*_fast.unrecorded(*inputs))
        y.set_shape(inputs[0].shape)

        def gradient(dy: Tensor) -> list[Tensor]:
            dz, dvalue, *rest = compiled_backward(dy, *inputs)
            offsets = [
                tf.raw_ops.BiasAddGrad(out_backprop=d) if t.shape.rank else tf.zeros_like(t)
                for d, t in ((dz, inputs[2]), (dvalue, inputs[3]))
            ]
            return [dz, dvalue, *offsets, *rest]

        return y, gradient

    return gated
