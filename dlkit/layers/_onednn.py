"""A layer normalisation that TensorFlow's graph optimiser runs as one kernel of oneDNN; `tf` is passed in.

The optimiser (Grappler's remapper) knows the shape in which Keras 2 wrote the layer: FusedBatchNormV3 over rows taken
for channels, with a scale and an offset filled in, then gamma and beta. It replaces all of that by `_MklLayerNorm`,
which takes the mean, then the variance, then writes, row by row in cache: one reading and one writing of memory. It
does so only where the number of rows is unknown, hence a function of its own that is not inlined. Where it does not,
the operations give the same numbers, slower.
"""

import functools
from collections.abc import Callable
from typing import Any

Tensor = Any


def fuses(tf: Any) -> bool:
    """Tells whether the function traced now will meet the optimiser, with oneDNN: no XLA, nothing switched off.

    XLA would expand the kernel into a variance of one pass, which is inexact at a large mean.
    """
    try:
        from tensorflow.python.ops import control_flow_util
        from tensorflow.python.util import _pywrap_util_port

        compiled = control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        if compiled or not _pywrap_util_port.IsMklEnabled():
            return False
    except (ImportError, AttributeError):  # another TensorFlow: the compiled functions do
        return False
    options = tf.config.optimizer.get_experimental_options()
    return bool(options.get("remapping", True)) and not options.get("disable_meta_optimizer", False)


def layer_norm(tf: Any, epsilon: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns f(x, gamma, beta) that normalises a float32 tensor over its last axis."""

    def normalised(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        rows = tf.reshape(x, [-1, x.shape[-1]])
        return tf.reshape(_of_rows(tf, x.shape[-1], epsilon)(rows, gamma, beta), tf.shape(x))

    return normalised


@functools.lru_cache(maxsize=256)
def _of_rows(tf: Any, channels: int, epsilon: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    vector = tf.TensorSpec([channels])

    @tf.function(
        input_signature=[tf.TensorSpec([None, channels]), vector, vector],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    def normalised(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        count, empty = tf.shape(x)[0], tf.constant([], tf.float32)
        whitened = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(x, tf.stack([1, count, channels, 1])),
            scale=tf.fill([count], 1.0),
            offset=tf.fill([count], 0.0),
            mean=empty,
            variance=empty,
            epsilon=epsilon,
            is_training=True,
            data_format="NCHW",
        )
        return beta + tf.reshape(whitened.y, tf.shape(x)) * gamma

    return normalised
