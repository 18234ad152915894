"""The gradients of convolutions as matrix products against TensorFlow's own, and where they are taken."""

import numpy as np
import pytest
import tensorflow as tf

from dlkit.train import _convolutions
from dlkit.train.precision import arithmetic

RNG = np.random.default_rng(0)
# map, channels, filters, kernel, strides, padding; operations of the usual gradient that stay in float32, in bfloat16
OWN = {"Conv2DBackpropInput", "Conv2DBackpropFilter"}
CASES = {
    "1x1": ((5, 7), 6, 8, (1, 1), (1, 1), "SAME", set(), set()),
    "1x1 on a large map": ((40, 40), 6, 8, (1, 1), (1, 1), "SAME", OWN, OWN),
    "1x1 strided, even": ((6, 8), 6, 8, (1, 1), (2, 2), "VALID", set(), set()),
    "1x1 strided, odd": ((7, 5), 6, 8, (1, 1), (2, 3), "SAME", set(), set()),
    "3x3": ((3, 4), 16, 20, (3, 3), (1, 1), "SAME", OWN, {"Conv2DBackpropInput"}),
    "3x3 without padding": ((5, 4), 16, 20, (3, 3), (1, 1), "VALID", OWN, {"Conv2DBackpropInput"}),
    "2x5": ((3, 4), 16, 20, (2, 5), (1, 1), "SAME", OWN, {"Conv2DBackpropInput"}),
    "3x3 with fewer channels than positions": ((4, 4), 16, 20, (3, 3), (1, 1), "SAME", OWN, OWN),
    "3x3 strided": ((6, 6), 16, 20, (3, 3), (2, 2), "SAME", OWN, OWN),
}


@pytest.mark.parametrize("batch", [3, None])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_gradients_of_a_convolution(case, precision, batch):
    (height, width), channels, filters, size, strides, padding, *stay = case
    x = RNG.normal(size=(3, height, width, channels)).astype("float32")
    kernel = RNG.normal(size=(*size, channels, filters)).astype("float32")
    weight = RNG.normal(size=tf.nn.conv2d(x, kernel, strides, padding).shape).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec([batch, *x.shape[1:]]), tf.TensorSpec(kernel.shape)], autograph=False)
    def traced(x, kernel):
        with _convolutions.fast_gradients():
            y = tf.nn.conv2d(x, kernel, strides, padding)
        return tf.gradients(tf.reduce_sum(y * weight), [x, kernel])

    with arithmetic(precision):
        graph = traced.get_concrete_function().graph
        found = traced(x, kernel)
    assert {op.type for op in graph.get_operations()} & OWN == stay[precision == "bfloat16"]
    with tf.GradientTape() as tape:
        inputs = tf.constant(x, tf.float64), tf.constant(kernel, tf.float64)
        tape.watch(inputs)
        total = tf.reduce_sum(tf.nn.conv2d(*inputs, strides, padding) * weight)
    tolerance = 1e-5 if precision == "float32" else 0.02  # bfloat16 has eight bits
    for value, expected in zip(found, tape.gradient(total, inputs), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize(("inside", "dilations"), [(32, 2), (16, 1)], ids=["dilated", "groups"])
def test_other_convolutions_keep_their_own_gradient(inside, dilations):
    @tf.function(autograph=False)
    def traced(x, kernel):
        with _convolutions.fast_gradients():
            y = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilations)
        return tf.gradients(y, [x, kernel])

    with arithmetic("bfloat16"):
        graph = traced.get_concrete_function(tf.zeros((1, 3, 3, 32)), tf.zeros((1, 1, inside, 32))).graph
    assert {op.type for op in graph.get_operations()} >= OWN


def test_maps_of_unknown_size_keep_the_own_gradient():
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4])], autograph=False)
    def traced(x):
        kernel = tf.ones((1, 1, 4, 4))
        with _convolutions.fast_gradients():
            y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.gradients(y, [x, kernel])

    x = np.ones((2, 3, 5, 4), "float32")
    into, weights = traced(x)
    np.testing.assert_allclose(into, 4 * x)
    np.testing.assert_allclose(weights, np.full((1, 1, 4, 4), x[..., 0].size))


def test_the_block_ends_with_the_context():
    @tf.function(autograph=False)
    def traced(x, kernel):
        with _convolutions.fast_gradients():
            pass
        return tf.gradients(tf.nn.conv2d(x, kernel, 1, "SAME"), kernel)

    graph = traced.get_concrete_function(tf.zeros((1, 2, 2, 4)), tf.zeros((1, 1, 4, 4))).graph
    assert "Conv2DBackpropFilter" in {op.type for op in graph.get_operations()}
