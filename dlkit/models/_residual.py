"""Residual blocks, with the activation after or before the convolutions, and the shortcut without parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dlkit import layers
from dlkit.models._blocks import Parts, average_pool

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Form:
    """What distinguishes the versions of a residual network."""

    preactivation: bool = False  # v2: norm and activation before each convolution
    stride_first: bool = True  # the stride of a bottleneck is in its first 1x1 (else in its 3x3)
    average_shortcut: bool = False  # D: the projection averages 2x2 pixels and has stride 1


FORMS = {
    "v1": Form(),
    "v1.5": Form(stride_first=False),
    "v2": Form(preactivation=True),
    "d": Form(stride_first=False, average_shortcut=True),
}


@keras.saving.register_keras_serializable(package="dlkit")
class PadShortcut(keras.layers.Layer):
    """The shortcut without parameters: takes every `strides`-th pixel and adds channels of zeros.

        y[i, j] = (0, ..., 0, x[strides * i, strides * j], 0, ..., 0)

    Args:
        filters: channels of the output.
        strides: step between the pixels that are kept.
        pad: "split" puts half of the zeros before the channels and half after, as public PyTorch weights for CIFAR
            expect; "after" puts all of them after, as the authors' Lua code does. The two networks differ.

    >>> import numpy as np
    >>> np.asarray(PadShortcut(4, strides=2)(np.ones((1, 2, 2, 2), "float32"))).ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]

    Reference: K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.3, option A.
    """

    def __init__(self, filters: int, strides: int = 1, pad: str = "split", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.strides, self.pad = filters, strides, pad

    def call(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self.strides > 1:  # the mean of one pixel: TensorFlow's strided slices take several times as long
            x = ops.average_pool(x, 1, self.strides)
        zeros = self.filters - x.shape[-1]
        before = zeros // 2 if self.pad == "split" else 0
        return ops.pad(x, [(0, 0)] * (len(x.shape) - 1) + [(before, zeros - before)])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        batch, *spatial, _ = input_shape
        return (batch, *(None if n is None else -(-n // self.strides) for n in spatial), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "strides": self.strides, "pad": self.pad}


@dataclasses.dataclass(frozen=True)
class Block:
    """One residual block as data: everything but its place in the network."""

    parts: Parts
    form: Form
    filters: int  # of the 3x3 convolutions; a bottleneck ends in four times as many
    bottleneck: bool
    shortcut: str = "B"
    pad: str = "split"
    residual: bool = True
    zero_gamma: bool = False

    @property
    def out(self) -> int:
        """Channels of the output."""
        return self.filters * (4 if self.bottleneck else 1)

    def convs(self, strides: int) -> list[tuple[int, int, int]]:
        """Returns (kernel, filters, stride) of each convolution."""
        f = self.filters
        if not self.bottleneck:
            return [(3, f, strides), (3, f, 1)]
        if self.form.stride_first:
            return [(1, f, strides), (3, f, 1), (1, 4 * f, 1)]
        return [(1, f, 1), (3, f, strides), (1, 4 * f, 1)]

    def __call__(self, x: Tensor, name: str, strides: int = 1, drop: Any = 0.0, activated: bool = False) -> Tensor:
        """Returns the block's output.

        Args:
            x: its input.
            name: prefix of its layers' names.
            strides: by which the map shrinks.
            drop: rate of stochastic depth, or a tensor that multiplies the branch.
            activated: pre-activation only: x is normalised and activated already (the first block of a network).
        """
        apply = self._pre if self.form.preactivation else self._post
        return apply(x, name, strides, drop, activated)

    def _post(self, x: Tensor, name: str, strides: int, drop: Any, activated: bool) -> Tensor:
        """conv, norm, activation, ..., conv, norm; plus the shortcut; activation."""
        p, y, convs = self.parts, x, self.convs(strides)
        for i, (kernel, filters, step) in enumerate(convs, 1):
            last = i == len(convs)
            y = p.conv(y, filters, kernel, name=f"{name}_conv{i}", strides=step)
            y = p.normalize(y, f"{name}_norm{i}", zero=last and self.zero_gamma and self.residual)
            if not last:
                y = p.activate(y, f"{name}_act{i}")
        if self.residual:
            y = self._add(self._shortcut(x, name, strides, norm=True), y, name, drop)
        return p.activate(y, f"{name}_out")

    def _pre(self, x: Tensor, name: str, strides: int, drop: Any, activated: bool) -> Tensor:
        """norm, activation, conv, ..., norm, activation, conv; plus the shortcut."""
        p, y, convs = self.parts, x, self.convs(strides)
        if not activated:
            y = p.activate(p.normalize(y, f"{name}_norm1"), f"{name}_act1")
        changes = strides > 1 or x.shape[-1] != self.out
        # where dimensions change, both branches read the activated input; an identity carries the raw one
        carried = self._shortcut(y if changes else x, name, strides, norm=False) if self.residual else None
        for i, (kernel, filters, step) in enumerate(convs, 1):
            if i > 1:
                zero = i == len(convs) and self.zero_gamma and self.residual
                y = p.activate(p.normalize(y, f"{name}_norm{i}", zero=zero), f"{name}_act{i}")
            y = p.conv(y, filters, kernel, name=f"{name}_conv{i}", strides=step)
        return y if carried is None else self._add(carried, y, name, drop, "out")

    def _add(self, carried: Tensor, y: Tensor, name: str, drop: Any, add: str = "add") -> Tensor:
        if not isinstance(drop, float):
            y = keras.layers.Multiply(name=f"{name}_gated")([y, drop])
        elif drop > 0:
            y = layers.StochasticDepth(drop, name=f"{name}_drop")(y)
        return keras.layers.Add(name=f"{name}_{add}")([carried, y])

    def _shortcut(self, x: Tensor, name: str, strides: int, norm: bool) -> Tensor:
        """Returns the identity where shapes agree, else option A (zeros) or option B (a projection)."""
        if strides == 1 and x.shape[-1] == self.out:
            return x
        if self.shortcut == "A":
            return PadShortcut(self.out, strides, self.pad, name=f"{name}_shortcut")(x)
        if self.form.average_shortcut and strides > 1:
            x, strides = average_pool(x, 2, 2, name=f"{name}_shortcut_pool", padding="same"), 1
        x = self.parts.conv(x, self.out, 1, name=f"{name}_shortcut", strides=strides)
        return self.parts.normalize(x, f"{name}_shortcut_norm") if norm else x
