"""Residual networks for CIFAR: 6n+2 or 9n+2 layers in three stages, up to a thousand and more."""

from collections.abc import Sequence
from typing import Any

import keras

from dlkit._errors import InputError, unknown
from dlkit.models._blocks import Parts, check_size, checked_shape, image_input, out_size
from dlkit.models._remat import Rematerialized
from dlkit.models._residual import FORMS, Block
from dlkit.models._resnet import check_options, finish, form_of, is_large, stem_layers
from dlkit.models._stage import Stage

CHANNELS = (16, 32, 64)
CONVS = {"basic": 2, "bottleneck": 3}
FLAT = 36  # up to so many blocks per stage (218 layers) the model is a flat graph of layers


def resnet_cifar(
    depth: int = 20,
    block: str = "basic",
    version: str = "v1",
    shortcut: str | None = None,
    *,
    classes: int = 10,
    input_shape: Sequence[int | None] = (32, 32, 3),
    norm: Any = "batch",
    activation: Any = "relu",
    initializer: Any = "he",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    residual: bool = True,
    remat: bool = False,
    pad: str = "split",
    stem: str = "cifar",
    zero_gamma: bool = False,
    stochastic_depth: float = 0.0,
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network for small pictures: three stages of n blocks with 16, 32 and 64 channels.

        depth = 6n + 2 with basic blocks (two 3x3), 9n + 2 with bottlenecks (1x1, 3x3, 1x1; channels times 4)

    Choose it for pictures of about 32 pixels; `resnet` has four wider stages and a stem for large pictures. Depth 20
    trains in minutes; with more than a hundred layers use `version="v2"`, whose identity path nothing interrupts.

    Args:
        depth: 20, 32, 44, 56, 110, 1202 in the paper; any 6n+2 (9n+2 with bottlenecks: 164, 1001).
        block: "basic" or "bottleneck".
        version: "v1" (paper), "v1.5" (bottleneck with the stride in the 3x3) or "v2" (pre-activation).
        shortcut: where dimensions change: "A" pads with zero channels (the paper's choice, no parameters), "B"
            projects. None is A with basic blocks and B with bottlenecks.
        classes: number of classes.
        input_shape: height, width, channels; None for an unknown size.
        norm: name for `dlkit.layers.norm`.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`; the paper draws with variance 2 / fan_in.
        width: factor on every channel count, for slim copies.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the last map.
        residual: False leaves the shortcuts out: the paper's plain nets.
        remat: True computes a block's inside again in the backward pass instead of keeping it: less memory for a third
            more time. Same weights, names, files and results.
        pad: option A's zeros: "split" half before and half after (public PyTorch weights), "after" all after (the
            authors' Lua code).
        stem: "cifar" is 3x3 with stride 1, "imagenet" 7x7 with stride 2 and pooling; "auto" takes the latter from 64
            pixels.
        zero_gamma: starts each branch's last norm at 0, so that every block begins as the identity.
        stochastic_depth: rate at which the last block's branch is dropped in training; it grows linearly from 0.
        epsilon: of the norm; None is the norm's own default (1e-5).
        name: of the model; by default `resnet_cifar20_v1` and the like.

    Input: (batch, height, width, channels). Output: (batch, classes), float32.

    Raises:
        InputError: an impossible depth (the neighbours are named), an unknown word, a wrong shape or rate, an input
            below 3 pixels.

    Example:
        >>> resnet_cifar(20).count_params() - 2 * 688  # moving averages are no parameters of the paper
        269722

    Reference: K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2 and Table 6,
    https://arxiv.org/abs/1512.03385; "Identity Mappings in Deep Residual Networks", 2016 (v2, bottlenecks),
    https://arxiv.org/abs/1603.05027; lecture 000 (E. Sokolov), section 8.3.
    """
    if block not in CONVS:
        raise unknown("block", block, CONVS)
    n = _blocks_per_stage(depth, block)
    form = form_of(version, {k: v for k, v in FORMS.items() if k != "d"})
    shortcut = ("A" if block == "basic" else "B") if shortcut is None else shortcut
    check_options("resnet_cifar", classes, shortcut, pad, stem, stochastic_depth)
    parts = Parts(norm, activation, initializer, width, epsilon)
    shape = checked_shape(input_shape, "resnet_cifar")
    large = is_large(stem, shape, default="cifar")
    check_size("resnet_cifar", shape, lambda size: _last(size, large), 'stem="cifar" fits better' if large else "")
    inputs = image_input(shape, "resnet_cifar")
    x = stem_layers(parts, inputs, parts.channels(16), large)
    for stage, filters in enumerate(CHANNELS, 2):
        make = Block(parts, form, parts.channels(filters), block == "bottleneck", shortcut, pad, residual, zero_gamma)
        rates = [stochastic_depth * ((stage - 2) * n + i) / (3 * n) for i in range(1, n + 1)]
        x = _stage(make, x, stage, rates, remat)
    x = finish(parts, x, form.preactivation, include_top, classes, classifier_activation)
    kind = "resnet" if residual else "plain"
    model = Rematerialized if remat and n <= FLAT else keras.Model
    return model(inputs, x, name=name or f"{kind}_cifar{depth}_{version.replace('.', '_')}")


def _stage(block: Block, x: Any, stage: int, rates: list[float], remat: bool) -> Any:
    """Returns a stage's output. Beyond `FLAT` blocks all but the first are one layer: see `Stage`."""
    first = 2 if stage > 2 else 1
    alone = len(rates) if len(rates) <= FLAT else 1
    for i in range(1, alone + 1):
        x = block(x, f"stage{stage}_block{i}", first if i == 1 else 1, rates[i - 1], activated=(stage, i) == (2, 1))
    if alone == len(rates):
        return x
    name, varied = f"stage{stage}_block2", rates[1:] if any(rates) else None
    inputs = [keras.Input(x.shape[1:], name=f"{name}_input")]
    if varied:
        inputs.append(keras.Input((1,) * (len(x.shape) - 1), name=f"{name}_gate"))
    template = keras.Model(inputs, block(inputs[0], name, drop=inputs[-1] if varied else 0.0), name=name)
    return Stage(template, len(rates) - 1, varied, remat, name=f"stage{stage}_blocks")(x)


def _blocks_per_stage(depth: Any, block: str) -> int:
    """Returns n of depth = 6n + 2 (basic) or 9n + 2 (bottleneck)."""
    step = 3 * CONVS[block]
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < step + 2 or (depth - 2) % step:
        rule = f"{step}n+2 with {block} blocks"
        below = max(step + 2, (int(depth) - 2) // step * step + 2) if isinstance(depth, (int, float)) else step + 2
        raise InputError(f"resnet_cifar: depth={depth!r} must be {rule}, such as {below} or {below + step}")
    return (depth - 2) // step


def _last(n: int, large: bool) -> int:
    """Returns the size of the last map; 0 if a stage with stride 2 had a single pixel to start from."""
    for kernel, padding in ([(7, 3), (3, 1)] if large else []) + [(3, 1), (3, 1)]:
        if n < 2:
            return 0
        n = out_size(n, kernel, 2, padding)
    return n
