"""Residual networks for ImageNet: 18 to 152 layers in four versions, and the plain nets they are compared with."""

from collections.abc import Sequence
from typing import Any

import keras

from dlkit._errors import InputError, unknown
from dlkit.models._blocks import (
    Parts,
    check_classes,
    check_size,
    checked_shape,
    classifier,
    global_pool,
    image_input,
    out_size,
)
from dlkit.models._residual import FORMS, Block

# depth: (bottleneck blocks?, blocks per stage), the columns of Table 1
DEPTHS = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
CHANNELS = (64, 128, 256, 512)
STEMS = ("auto", "imagenet", "cifar")


def resnet(
    depth: int = 50,
    version: str = "v1",
    *,
    classes: int = 1000,
    input_shape: Sequence[int | None] = (224, 224, 3),
    norm: Any = "batch",
    activation: Any = "relu",
    initializer: Any = "he",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    residual: bool = True,
    shortcut: str = "B",
    pad: str = "split",
    stem: str = "imagenet",
    zero_gamma: bool = False,
    stochastic_depth: float = 0.0,
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network for pictures of ImageNet's size.

        H(x) = F(x) + x, F two 3x3 convolutions (18, 34) or 1x1, 3x3, 1x1 (50, 101, 152)

    Versions with the same parameters and different functions:

        v1    the paper: a bottleneck's stride is in its first 1x1 convolution
        v1.5  the stride is in the 3x3, which reads every pixel: what torchvision trains, a little better and dearer
        v2    norm and activation before each convolution (pre-activation), stride in the first 1x1 (the authors' code)
        d     v1.5 with three 3x3 convolutions as stem and shortcuts that average before they project (own parameters)

    Choose v1.5 or d for accuracy, v1 to compare with the paper, v2 for networks of hundreds of layers. `resnet_cifar`
    is the family for 32x32 pictures.

    Args:
        depth: 18, 34, 50, 101 or 152.
        version: see above.
        classes: number of classes.
        input_shape: height, width, channels; None for an unknown size.
        norm: name for `dlkit.layers.norm`.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`; the paper draws with variance 2 / fan_in.
        width: factor on every channel count, for slim copies.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the last map.
        residual: False leaves the shortcuts out: the paper's plain nets.
        shortcut: where dimensions change: "B" projects (the paper's choice), "A" pads with zero channels.
        pad: option A's zeros: "split" half before and half after, "after" all after.
        stem: "imagenet" is 7x7 with stride 2 and pooling, "cifar" 3x3 with stride 1 alone; "auto" takes the latter
            below 64 pixels.
        zero_gamma: starts each branch's last norm at 0, so that every block begins as the identity.
        stochastic_depth: rate at which the last block's branch is dropped in training; it grows linearly from 0.
        epsilon: of the norm; None is the norm's own default (1e-5).
        name: of the model; by default `resnet50_v1` and the like.

    Input: (batch, height, width, channels). Output: (batch, classes), float32. Convolutions and pooling with strides
    pad symmetrically, as the paper's code does and TensorFlow's "same" does not.

    Raises:
        InputError: unknown depth, version or stem, a wrong shape or rate, an input below 17 pixels.

    Warns:
        SmallMapWarning: the last map has one pixel (32 pixels with the ImageNet stem).

    Example:
        >>> resnet(18, classes=10, input_shape=(64, 64, 3), width=0.125).output_shape
        (None, 10)

    Reference: K. He et al., "Deep Residual Learning for Image Recognition", 2015, Table 1,
    https://arxiv.org/abs/1512.03385; "Identity Mappings in Deep Residual Networks", 2016,
    https://arxiv.org/abs/1603.05027 (v2); T. He et al., "Bag of Tricks", 2018, https://arxiv.org/abs/1812.01187 (d);
    lecture 000 (E. Sokolov), section 8.3.
    """
    if depth not in DEPTHS:
        near = ", ".join(map(str, DEPTHS))
        raise InputError(f"resnet: depth={depth!r} must be one of {near}; resnet_cifar has 6n+2 layers")
    form = form_of(version, FORMS)
    bottleneck, depths = DEPTHS[depth]
    parts = Parts(norm, activation, initializer, width, epsilon)
    check_options("resnet", classes, shortcut, pad, stem, stochastic_depth)
    shape = checked_shape(input_shape, "resnet")
    large = is_large(stem, shape, default="imagenet")
    check_size("resnet", shape, lambda n: _last(n, large), 'stem="cifar" keeps four times the size' if large else "")
    inputs = image_input(shape, "resnet")
    x = stem_layers(parts, inputs, parts.channels(64), large, deep=version == "d")
    done, total = 0, sum(depths)
    for stage, (blocks, filters) in enumerate(zip(depths, CHANNELS, strict=True), 2):
        block = Block(parts, form, parts.channels(filters), bottleneck, shortcut, pad, residual, zero_gamma)
        for i in range(1, blocks + 1):
            strides = 2 if i == 1 and stage > 2 else 1
            done += 1
            drop = stochastic_depth * done / total
            x = block(x, f"stage{stage}_block{i}", strides, drop, activated=done == 1)
    x = finish(parts, x, form.preactivation, include_top, classes, classifier_activation)
    kind = "resnet" if residual else "plain"
    return keras.Model(inputs, x, name=name or f"{kind}{depth}_{version.replace('.', '_')}")


def form_of(version: Any, forms: dict) -> Any:
    """Returns the version's form."""
    if version not in forms:
        raise unknown("ResNet version", version, forms)
    return forms[version]


def check_options(builder: str, classes: Any, shortcut: Any, pad: Any, stem: Any, stochastic_depth: Any) -> None:
    """Refuses wrong words and rates."""
    check_classes(classes, builder)
    if shortcut not in ("A", "B"):
        raise unknown("shortcut option", shortcut, ("A", "B"))
    if pad not in ("split", "after"):
        raise unknown("placement of option A's zeros", pad, ("split", "after"))
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    if not isinstance(stochastic_depth, (int, float)) or not 0 <= stochastic_depth < 1:
        raise InputError(
            f"{builder}: stochastic_depth={stochastic_depth!r} must be at least 0 and below 1, such as 0.5"
        )


def is_large(stem: str, shape: Sequence[int | None], default: str) -> bool:
    """Tells whether the stem is ImageNet's; "auto" decides by the size and, where that is unknown, by the builder."""
    if stem != "auto":
        return stem == "imagenet"
    sizes = [n for n in shape[:-1] if n is not None]
    return min(sizes) >= 64 if sizes else default == "imagenet"


def stem_layers(parts: Parts, x: Any, filters: int, large: bool, deep: bool = False) -> Any:
    """Returns the network's first layers: convolution, norm, activation and, for large pictures, pooling."""
    if deep and large:
        half = parts.channels(32)
        for i, (channels, strides) in enumerate([(half, 2), (half, 1), (filters, 1)], 1):
            x = parts.conv(x, channels, 3, name=f"conv1_{i}", strides=strides)
            x = parts.activate(parts.normalize(x, f"conv1_{i}_norm"), f"conv1_{i}_act")
    else:
        x = parts.conv(x, filters, 7 if large else 3, name="conv1", strides=2 if large else 1)
        x = parts.activate(parts.normalize(x, "conv1_norm"), "conv1_act")
    return parts.max_pool(x, 3, 2, name="pool1", padding=1) if large else x


def finish(parts: Parts, x: Any, preactivation: bool, include_top: bool, classes: int, activation: Any) -> Any:
    """Returns the network's last layers: v2's last norm and activation, the mean over positions, the classifier."""
    if preactivation:
        x = parts.activate(parts.normalize(x, "last_norm"), "last_act")
    return classifier(parts, global_pool(x), classes, activation, "fc") if include_top else x


def _last(n: int, large: bool) -> int:
    """Returns the size of the last map; 0 if a stage with stride 2 had a single pixel to start from."""
    if large:
        n = out_size(n, 7, 2, 3)
        if n < 2:
            return 0
        n = out_size(n, 3, 2, 1)
    for _ in range(3):
        if n < 2:
            return 0
        n = out_size(n, 3, 2, 1)
    return n


def resnet18(**kw: Any) -> keras.Model:
    """Builds ResNet-18: `resnet(18, ...)`."""
    return resnet(18, **kw)


def resnet34(**kw: Any) -> keras.Model:
    """Builds ResNet-34: `resnet(34, ...)`."""
    return resnet(34, **kw)


def resnet50(**kw: Any) -> keras.Model:
    """Builds ResNet-50: `resnet(50, ...)`."""
    return resnet(50, **kw)


def resnet101(**kw: Any) -> keras.Model:
    """Builds ResNet-101: `resnet(101, ...)`."""
    return resnet(101, **kw)


def resnet152(**kw: Any) -> keras.Model:
    """Builds ResNet-152: `resnet(152, ...)`."""
    return resnet(152, **kw)
