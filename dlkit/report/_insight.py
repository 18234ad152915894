"""What a network looks at: Grad-CAM, first filters, feature maps."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit.train.tasks import gives_probabilities

MIN_SIDE = 4  # a coarser map says nothing about the place


def grad_cam(model: Any, inputs: Any, classes: Any) -> np.ndarray | None:
    """Returns for each picture how much each place speaks for a class, (n, h, w), the largest value 1.

        cam = relu(sum_k a_k A_k),   a_k = mean over the places of d score_class / d A_k

    A is the last feature map of at least `MIN_SIDE` positions a side; the score is the logit, or the logarithm of the
    probability where the network gives probabilities. A map that is nowhere positive stays zero.

    Args:
        model: functional.
        inputs: preprocessed pictures (n, height, width, channels).
        classes: the class id asked about, one per picture.

    Returns:
        The maps, or None where the network has no feature map.

    Reference: Selvaraju et al., 2017, "Grad-CAM", equations 1 and 2, https://arxiv.org/abs/1610.02391
    """
    found = feature_layers(model)
    if not found:
        return None
    both = keras.Model(model.inputs, [found[-1][1], model.outputs[0]])
    inputs = tf.convert_to_tensor(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        maps, outputs = both([inputs], training=False)
        score = tf.gather(outputs, classes, axis=1, batch_dims=1)
        score = tf.math.log(score + 1e-7) if gives_probabilities(model) else score
    weights = tf.reduce_mean(tape.gradient(score, maps), (1, 2), keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(weights * maps, -1)).numpy()
    top = cam.max((1, 2), keepdims=True)
    return np.divide(cam, top, out=np.zeros_like(cam), where=top > 0)


def feature_layers(model: Any) -> list[tuple[Any, Any]]:
    """Returns (layer, output) for each feature map (n, h, w, channels) of at least `MIN_SIDE` positions a side.

    The outputs are those of the model's own graph: a layer's `output` may belong to another one, as in a Sequential
    that was read from a file.
    """
    graph = keras.Model(model.inputs, model.outputs)
    found = []
    for depth in sorted(graph._nodes_by_depth, reverse=True):  # from the input on
        for node in graph._nodes_by_depth[depth]:
            shape = node.output_tensors[0].shape
            known = len(shape) == 4 and all(side is None or side >= MIN_SIDE for side in shape[1:3])
            if known and not isinstance(node.operation, keras.layers.InputLayer):
                found.append((node.operation, node.output_tensors[0]))
    return found


def first_filters(model: Any) -> np.ndarray | None:
    """Returns the kernels of the first convolution of pictures, (height, width, 1 or 3, filters); None without one."""
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 4 and weight.shape[2] in (1, 3) and min(weight.shape[:2]) > 1:
                return np.asarray(weight)
    return None


def feature_maps(model: Any, inputs: Any) -> list[tuple[str, np.ndarray]]:
    """Returns (layer, maps (h, w, channels)) of one picture, after the first, the middle and the last activation."""
    found = feature_layers(model)
    active = [pair for pair in found if isinstance(pair[0], keras.layers.ReLU | keras.layers.Activation)] or found
    chosen = {layer.name: tensor for layer, tensor in (active[0], active[len(active) // 2], active[-1])}
    maps = keras.Model(model.inputs, chosen)([inputs[None]], training=False)
    return [(name, np.asarray(maps[name])[0]) for name in chosen]
