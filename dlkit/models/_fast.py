"""The TensorFlow backend's loop over stacked weights: `keras.ops.scan` collects nothing but the carry there."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
Body = Callable[[Tensor, list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor]]]


def loops() -> bool:
    """Tells whether this backend traces a loop's body once; elsewhere blocks run one after another."""
    return keras.backend.backend() in ("tensorflow", "jax")


def loop(body: Body, x: Tensor, constant: Sequence[Tensor], moving: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Runs x, new_i = body(x, constant[:, i], moving[:, i]) for every i; returns the last x and the stacked news.

    The body is traced once. It must keep the shape and dtype of x and of each moving value.
    """
    if keras.backend.backend() == "jax":
        x, new = ops.scan(lambda value, slices: body(value, *slices), x, (list(constant), list(moving)))
        return x, list(new)
    import tensorflow as tf

    stacks = [*constant, *moving]
    length = int(stacks[0].shape[0])

    def array(stack: Any) -> Any:
        return tf.TensorArray(stack.dtype, size=length, element_shape=stack.shape[1:])

    weights = [array(s).unstack(s) for s in stacks]

    def step(i: Any, value: Any, *collected: Any) -> tuple[Any, ...]:
        slices = [w.read(i) for w in weights]
        value, new = body(value, slices[: len(constant)], slices[len(constant) :])
        return (i + 1, value, *(a.write(i, y) for a, y in zip(collected, new, strict=True)))

    start = (tf.constant(0), x, *(array(s) for s in moving))
    _, x, *collected = tf.while_loop(
        lambda i, *_: i < length, step, start, maximum_iterations=length, parallel_iterations=1
    )
    return x, [a.stack() for a in collected]
