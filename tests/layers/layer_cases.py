"""One row per layer and variant: how to make it, an input shape, its reference, and what may be unknown."""

import functools
from dataclasses import dataclass, field
from typing import Any

import keras
import layer_references as r

from dlkit import layers


@dataclass(frozen=True)
class Case:
    """A row of the table; `checks` goes to check_layer."""

    name: str
    make: Any
    shape: tuple[int, ...]
    checks: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def row(name, make, shape, reference=None, **checks):
    return Case(name, make, shape, {"reference": reference, **checks})


def part(function, *args, **kw):
    return functools.partial(function, *args, **kw)


L = layers
PICTURE = {"unknown": (1, 2)}
PRODUCT = {"large": 100.0}  # a product of two projections: at inputs of 1e4 the true value exceeds float16
NORMS = [
    row("RMSNorm", L.RMSNorm, (3, 8), r.rms_norm),
    row("RMSNorm-rank4", L.RMSNorm, (2, 3, 4, 8), r.rms_norm, **PICTURE),
    row("RMSNorm-axis1", part(L.RMSNorm, axis=1), (2, 6, 5), part(r.rms_norm, axes=(1,)), unknown=(2,)),
    row("RMSNorm-axes", part(L.RMSNorm, axis=(-2, -1)), (2, 4, 5), part(r.rms_norm, axes=(1, 2))),
    row("LayerNorm", L.LayerNorm, (3, 8), r.layer_norm),
    row("LayerNorm-rank3", L.LayerNorm, (3, 7, 8), r.layer_norm, unknown=(1,)),
    row("LayerNorm-rank4", L.LayerNorm, (2, 3, 4, 8), r.layer_norm, **PICTURE),
    row("LayerNorm-image", part(L.LayerNorm, axis=(-3, -2, -1)), (2, 3, 4, 5), part(r.layer_norm, axes=(1, 2, 3))),
    row("LayerNorm-first", part(L.LayerNorm, axis=1), (2, 6, 4), part(r.layer_norm, axes=(1,)), unknown=(2,)),
    row("GroupNorm", part(L.GroupNorm, groups=4), (2, 4, 6, 8), part(r.group_norm, groups=4), **PICTURE),
    row("GroupNorm-rank2", part(L.GroupNorm, groups=2), (3, 8), part(r.group_norm, groups=2)),
    row("GroupNorm-rank3", part(L.GroupNorm, groups=2), (3, 5, 8), part(r.group_norm, groups=2), unknown=(1,)),
    row("GroupNorm-rank5", part(L.GroupNorm, groups=2), (2, 2, 3, 4, 4), part(r.group_norm, groups=2), **PICTURE),
    row("GroupNorm-first", part(L.GroupNorm, groups=3, axis=1), (2, 6, 3, 4), part(r.group_norm, groups=3, axis=1),
        unknown=(2, 3)),
    row("InstanceNorm", L.InstanceNorm, (2, 4, 6, 3), r.instance_norm, **PICTURE),
    row("InstanceNorm-rank3", L.InstanceNorm, (2, 9, 4), r.instance_norm, unknown=(1,)),
    row("InstanceNorm-first", part(L.InstanceNorm, axis=1), (2, 3, 8), part(r.instance_norm, axis=1), unknown=(2,)),
    row("BatchNorm", L.BatchNorm, (3, 4, 5, 6), r.batch_norm_inference, **PICTURE),
    row("BatchNorm-rank2", L.BatchNorm, (6, 5), r.batch_norm_inference),
    row("BatchNorm-training", L.BatchNorm, (3, 4, 5, 6), r.batch_norm_training, training=True, **PICTURE),
    row("BatchNorm-training-rank2", L.BatchNorm, (7, 5), r.batch_norm_training, training=True),
    row("BatchNorm-training-first", part(L.BatchNorm, axis=1), (3, 6, 4), part(r.batch_norm_training, axis=1),
        training=True, unknown=(2,)),
    row("BatchNorm-frozen", part(L.BatchNorm, frozen=True), (3, 4, 6), r.batch_norm_inference, training=True),
    row("BatchNorm-renorm", part(L.BatchNorm, renorm=(3.0, 5.0)), (3, 4, 6), r.batch_norm_inference),
    row("BatchNorm-plain", part(L.BatchNorm, center=False, scale=False), (3, 4, 6),
        lambda x, mean, variance: r.batch_norm_inference(x, *map(_ones_zeros, (x, x), (1, 0)), mean, variance)),
    row("LocalResponseNorm", L.LocalResponseNorm, (2, 3, 4, 9), r.local_response_norm, **PICTURE),
    row("LocalResponseNorm-strong", part(L.LocalResponseNorm, size=3, k=1.0, alpha=0.5, beta=0.6), (2, 7),
        part(r.local_response_norm, size=3, k=1.0, alpha=0.5, beta=0.6)),
]  # fmt: skip


def _ones_zeros(x, value):
    return r.np.full(x.shape[-1], float(value))


def ws_conv(x, kernel, bias, **kw):
    return r.conv2d(x, r.standardized(kernel, (0, 1, 2)), **kw) + bias


def ws_dense(x, kernel, bias):
    return x @ r.standardized(kernel, (0,)) + bias


def swiglu_learnt(x, w, v, b, c, beta):
    return r.swish(x @ w + b, beta) * (x @ v + c)


def gated_mlp(x, w, v, out):
    return (r.swish(x @ w) * (x @ v)) @ out


def maxout_conv(x, kernel, bias):
    z = r.conv2d(x, kernel, stride=2, same=True) + bias
    return r.np.maximum(z[..., :3], z[..., 3:])


OTHERS = [
    row("WSConv2D", part(L.WSConv2D, 4, 3), (2, 5, 6, 3), ws_conv, tolerance=2, **PICTURE),
    row("WSConv2D-same", part(L.WSConv2D, 4, 3, strides=2, padding="same"), (2, 5, 6, 3),
        part(ws_conv, stride=2, same=True), tolerance=2, **PICTURE),
    row("WeightStandardization", lambda **kw: L.WeightStandardization(keras.layers.Conv2D(4, 3, **kw), **kw),
        (2, 5, 6, 3), ws_conv, tolerance=2, **PICTURE),
    row("WeightStandardization-dense", lambda **kw: L.WeightStandardization(keras.layers.Dense(4, **kw), **kw),
        (3, 6), ws_dense, tolerance=2),
    row("Swish", L.Swish, (3, 6), r.swish),
    row("Swish-beta", part(L.Swish, beta=3.0, trainable=False), (3, 6), part(r.swish, beta=3.0)),
    row("Swish-channels", part(L.Swish, per_channel=True), (2, 3, 4, 5), r.swish, **PICTURE),
    row("Maxout", part(L.Maxout, 4, 3), (3, 6), part(r.maxout, pieces=3), tolerance=2),
    row("Maxout-rank3", part(L.Maxout, 4, 2), (2, 5, 6), part(r.maxout, pieces=2), unknown=(1,), tolerance=2),
    row("Maxout-conv", part(L.Maxout, 3, 2, kernel_size=3, strides=2, padding="same"), (2, 5, 6, 3), maxout_conv,
        tolerance=2, **PICTURE),
    row("GLU", part(L.GLU, 5), (3, 6), r.gated(r.sigmoid), tolerance=2, **PRODUCT),
    row("GLU-bilinear", part(L.GLU, 5, activation="linear"), (3, 6), r.gated(lambda z: z), tolerance=2, **PRODUCT),
    row("ReGLU", part(L.ReGLU, 5), (2, 4, 6), r.gated(lambda z: r.np.maximum(z, 0)), unknown=(1,), tolerance=2,
        **PRODUCT),
    row("GEGLU", part(L.GEGLU, 5), (2, 4, 6), r.gated(r.gelu), unknown=(1,), tolerance=2, **PRODUCT),
    row("SwiGLU", part(L.SwiGLU, 5), (2, 3, 4, 6), r.gated(r.swish), tolerance=2, **PICTURE, **PRODUCT),
    row("SwiGLU-no-bias", part(L.SwiGLU, 5, beta=2.0, use_bias=False), (3, 6), r.gated(part(r.swish, beta=2.0)),
        tolerance=2, **PRODUCT),
    row("SwiGLU-learnt", part(L.SwiGLU, 5, trainable_beta=True), (3, 6), swiglu_learnt, tolerance=2, **PRODUCT),
    row("GatedMLP", part(L.GatedMLP, 7), (2, 4, 6), gated_mlp, unknown=(1,), tolerance=3, **PRODUCT),
    row("GatedMLP-dropout", part(L.GatedMLP, 7, units=3, use_bias=True, dropout=0.2), (2, 6), random=True, **PRODUCT),
    row("Dropout", part(L.Dropout, 0.25), (4, 6), lambda x, *_: x, random=True),
    row("Dropout-test", part(L.Dropout, 0.25, scale_at="test"), (4, 6), lambda x, *_: 0.75 * x, random=True),
    row("StochasticDepth", part(L.StochasticDepth, 0.25), (4, 3, 6), lambda x, *_: x, random=True, unknown=(1,)),
    row("StochasticDepth-test", part(L.StochasticDepth, 0.25, scale_at="test"), (4, 6), lambda x, *_: 0.75 * x,
        random=True),
]  # fmt: skip
# exponentials of a half-precision input lose digits the way the input's own spacing does
NAMED = [
    row(f"activation-{name}", part(layers.activation, name), (3, 4, 5), reference, large=1e4, tolerance=2)
    for name, reference in r.ACTIVATIONS.items()
]
CASES = [*NORMS, *OTHERS, *NAMED]
