"""The layers' formulas in float64 NumPy, written from the papers and not from dlkit's code."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gelu(z):
    return z * 0.5 * (1 + erf(z / math.sqrt(2)))


def shaped(parameter, ndim, axis):
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def rms_norm(x, scale, axes=(-1,), epsilon=1e-6):
    y = x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + epsilon)
    return y * spread(scale, x.ndim, axes)


def spread(parameter, ndim, axes):
    positive = sorted(a % ndim for a in axes)
    return np.expand_dims(parameter, tuple(i for i in range(ndim) if i not in positive))


def layer_norm(x, gamma, beta, axes=(-1,), epsilon=1e-5):
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * spread(gamma, x.ndim, axes) + spread(beta, x.ndim, axes)


def group_norm(x, gamma, beta, groups, axis=-1, epsilon=1e-5):
    moved = np.moveaxis(x, axis, 1)
    n, channels = moved.shape[:2]
    grouped = moved.reshape(n, groups, channels // groups, -1)
    mean, variance = grouped.mean(axis=(2, 3), keepdims=True), grouped.var(axis=(2, 3), keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(moved.shape)
    y = np.moveaxis(normal, 1, axis)
    return y * shaped(gamma, x.ndim, axis) + shaped(beta, x.ndim, axis)


def instance_norm(x, gamma, beta, axis=-1, epsilon=1e-5):
    return group_norm(x, gamma, beta, x.shape[axis], axis, epsilon)


def batch_norm_inference(x, gamma, beta, mean, variance, axis=-1, epsilon=1e-5):
    gamma, beta, mean, variance = (shaped(p, x.ndim, axis) for p in (gamma, beta, mean, variance))
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def batch_norm_training(x, gamma, beta, *_, axis=-1, epsilon=1e-5):
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return batch_norm_inference(x, gamma, beta, x.mean(axis=axes), x.var(axis=axes), axis, epsilon)


def local_response_norm(x, size=5, k=2.0, alpha=1e-4, beta=0.75):
    y, channels = np.empty_like(x), x.shape[-1]
    for i in range(channels):
        near = x[..., max(0, i - size // 2) : min(channels, i + size // 2 + 1)]
        y[..., i] = x[..., i] / (k + alpha * np.sum(near**2, axis=-1)) ** beta
    return y


def swish(x, beta=1.0):
    return x * sigmoid(beta * x)


def maxout(x, kernel, bias, pieces):
    z = x @ kernel + bias
    return np.stack(np.split(z, pieces, axis=-1)).max(axis=0)


def conv2d(x, kernel, stride=1, same=False):
    """The sum of the definition, output pixel by output pixel."""
    height, width = kernel.shape[:2]
    if same:
        out = [-(-n // stride) for n in x.shape[1:3]]
        need = [max((o - 1) * stride + k - n, 0) for o, k, n in zip(out, (height, width), x.shape[1:3], strict=True)]
        x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in need), (0, 0)])
    rows = (x.shape[1] - height) // stride + 1
    columns = (x.shape[2] - width) // stride + 1
    y = np.empty((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + height, j * stride : j * stride + width]
            y[:, i, j] = np.tensordot(window, kernel, axes=3)
    return y


def standardized(kernel, axes, epsilon=1e-5):
    return (kernel - kernel.mean(axis=axes, keepdims=True)) / np.sqrt(kernel.var(axis=axes, keepdims=True) + epsilon)


def gated(f):
    def reference(x, w, v, b=0.0, c=0.0):
        return f(x @ w + b) * (x @ v + c)

    return reference


ACTIVATIONS = {
    "relu": lambda x: np.maximum(0, x),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "prelu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "elu": lambda x: np.where(x < 0, np.exp(x) - 1, x),
    "selu": lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * (np.exp(x) - 1), x),
    "gelu": gelu,
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "sigmoid": sigmoid,
    "tanh": lambda x: 2 * sigmoid(2 * x) - 1,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": swish,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
    "linear": lambda x: x,
    "none": lambda x: x,
}
