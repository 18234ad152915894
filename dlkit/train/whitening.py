"""A first convolution that whitens the pictures' patches and does not learn."""

from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError

EPSILON = 5e-4  # added to the eigenvalues: directions of smaller variance are noise and not blown up


def filters(images: Any, height: int, width: int, count: int, epsilon: float = EPSILON) -> np.ndarray:
    """Returns `count` filters (height, width, channels, count) that decorrelate patches, and the same with minus signs.

        C = mean over patches p p^T = V diag(lambda) V^T,   filter i = v_i / sqrt(lambda_i + epsilon),   then -filter i

    Their responses to such patches are uncorrelated with mean square 1; with both signs nothing is lost in a ReLU.
    The directions of the largest variance come first. With fewer filters than 2 height width channels the smallest
    directions are left out; those beyond it are zero.

    Args:
        images: prepared pictures (n, H, W, C).
        height, width: of a patch in pixels.
        count: of filters, even.
        epsilon: added to the eigenvalues, in squared units of the prepared pictures.

    >>> pictures = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
    >>> filters(pictures, 2, 2, 24).shape
    (2, 2, 3, 24)

    Reference: D. Page, "How to train your ResNet 8: Bag of tricks", 2019; K. Jordan, "94% on CIFAR-10 in 3.29 seconds
    on a single GPU", 2024, section 3.2, https://arxiv.org/abs/2404.00498.
    """
    images = np.asarray(images, "float64")
    if images.ndim != 4 or images.shape[1] < height or images.shape[2] < width:
        raise InputError(f"whitening {height}x{width} patches needs pictures (n, H, W, C), got {images.shape}")
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(1, 2))
    size = height * width * images.shape[-1]
    patches = windows.transpose(0, 1, 2, 4, 5, 3)
    covariance, number = np.zeros((size, size)), 0
    for block in patches:  # one picture's patches at a time: all of them would need size times the memory
        rows = block.reshape(-1, size)
        covariance += rows.T @ rows
        number += len(rows)
    values, vectors = np.linalg.eigh(covariance / number)
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(size)] < 0, -1.0, 1.0)  # one sign for all
    order = np.argsort(values)[::-1][: count // 2]
    half = vectors[:, order] / np.sqrt(np.maximum(values[order], 0.0) + epsilon)
    result = np.zeros((size, count))
    result[:, : half.shape[1]], result[:, half.shape[1] : 2 * half.shape[1]] = half, -half
    return result.reshape(height, width, images.shape[-1], count).astype("float32")


def first_convolution(model: Any) -> Any:
    """Returns the model's first two-dimensional convolution, the one that sees the pictures.

    Raises:
        InputError: the model has none, or another layer with weights comes before it.
    """
    for layer in getattr(model, "layers", []):
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel.shape[-2] == model.input_shape[-1]:
            return layer
        if layer.weights:
            break
    raise InputError(f"whiten: model {getattr(model, 'name', model)!r} does not begin with a convolution of pictures")


def prepare(model: Any) -> str:
    """Makes the kernel of the first convolution untrainable and returns the layer's name; its bias still learns.

    To be called before the optimizer is built, whether or not the run is a continuation.

    Raises:
        InputError: the model does not begin with a convolution.
    """
    layer = first_convolution(model)
    layer.kernel.trainable = False
    return str(layer.name)


def initialise(model: Any, images: Any) -> str:
    """Sets the first convolution's kernel to `filters` of the pictures and returns the layer's name.

    Filters beyond 2 height width channels keep their initial values.

    Raises:
        InputError: the model does not begin with a convolution, or its pictures have other channels.
    """
    layer = first_convolution(model)
    height, width, channels, count = layer.kernel.shape
    if np.shape(images)[-1] != channels:
        raise InputError(f"whiten: pictures of shape {np.shape(images)} for a first kernel of {channels} channels")
    kernel = np.array(ops.convert_to_numpy(layer.kernel))
    used = min(count // 2, height * width * channels) * 2
    kernel[..., :used] = filters(images, height, width, used)
    layer.kernel.assign(kernel)
    return str(layer.name)
