"""Layers of the lectures: `keras.ops` formulas for every backend, and faster paths on TensorFlow that equal them.

>>> from dlkit.layers import GroupNorm, SwiGLU, norm, activation
>>> norm("group", groups=8).groups
8
"""

from dlkit.layers._activations import Maxout, Swish, activation, gelu
from dlkit.layers._batch_norm import BatchNorm
from dlkit.layers._conv import WeightStandardization, WSConv2D
from dlkit.layers._dropout import Dropout, StochasticDepth
from dlkit.layers._factory import norm
from dlkit.layers._fast import standard_ops
from dlkit.layers._gated import GEGLU, GLU, GatedMLP, ReGLU, SwiGLU
from dlkit.layers._norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from dlkit.layers._response import LocalResponseNorm

__all__ = [
    "RMSNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "BatchNorm", "LocalResponseNorm",
    "WSConv2D", "WeightStandardization",
    "Swish", "Maxout",
    "GLU", "ReGLU", "GEGLU", "SwiGLU", "GatedMLP",
    "Dropout", "StochasticDepth",
    "norm", "activation", "gelu", "standard_ops",
]  # fmt: skip
