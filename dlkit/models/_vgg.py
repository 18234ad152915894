"""VGG: the six configurations of Table 1 and any normalisation of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from dlkit import layers
from dlkit._errors import InputError, unknown
from dlkit.models._blocks import Parts, check_classes, check_size, checked_shape, classifier, image_input


@dataclasses.dataclass(frozen=True)
class Spec:
    """One column of Table 1."""

    depths: tuple[int, ...]  # convolutions per stage
    third: int = 3  # kernel of a stage's third convolution: 1 in C
    lrn: bool = False  # local response norm after the first convolution: A-LRN


SPECS = {
    "A": Spec((1, 1, 2, 2, 2)),
    "A-LRN": Spec((1, 1, 2, 2, 2), lrn=True),
    "B": Spec((2, 2, 2, 2, 2)),
    "C": Spec((2, 2, 3, 3, 3), third=1),
    "D": Spec((2, 2, 3, 3, 3)),
    "E": Spec((2, 2, 4, 4, 4)),
}
CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    config: str = "D",
    *,
    classes: int = 1000,
    input_shape: Sequence[int | None] = (224, 224, 3),
    norm: Any = "none",
    activation: Any = "relu",
    initializer: Any = "glorot",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    dropout: float = 0.5,
    stem: str = "imagenet",
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a VGG network: stages of 3x3 convolutions, each ended by 2x2 maximum pooling, then three dense layers.

        conv -> (norm) -> activation, repeated; pool; five times; fc6 -> fc7 -> fc8

    Choose it for features whose layers are easy to read, for style transfer and as the baseline that `resnet` beats at
    a tenth of the multiply-adds. Without a norm the deep columns D and E are hard to train from random weights: use
    `norm="batch"`, or `grow` them from A as the authors did.

    Args:
        config: column of Table 1: "A", "A-LRN", "B", "C", "D" (VGG-16) or "E" (VGG-19).
        classes: number of classes.
        input_shape: height, width, channels. Heights and widths may be None only with `include_top=False`.
        norm: name for `dlkit.layers.norm`, set between convolution and activation; "none" is the paper.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`; the authors settled on Glorot's.
        width: factor on every channel and unit count, for slim copies.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the map after the last pooling.
        dropout: rate after fc6 and fc7 (0.5 in the paper, section 3.1).
        stem: "imagenet" is the paper; "cifar" leaves out the first pooling, so that 32 pixels end in 2x2; "auto" takes
            the latter below 64 pixels.
        epsilon: of the norm; None is the norm's own default.
        name: of the model; by default `vgg16_d` and the like.

    Input: (batch, height, width, channels). Output: (batch, classes), float32.

    Raises:
        InputError: unknown config or stem, wrong shape, an input below 32 pixels (16 with the small stem).

    Example:
        >>> vgg("A", classes=10, input_shape=(64, 64, 3), width=0.125).output_shape
        (None, 10)

    Reference: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
    Table 1, https://arxiv.org/abs/1409.1556; lecture 000 (E. Sokolov), section 8.2.
    """
    if config not in SPECS:
        raise unknown("VGG configuration", config, SPECS)
    spec, parts = SPECS[config], Parts(norm, activation, initializer, width, epsilon)
    check_classes(classes, "vgg")
    shape = checked_shape(input_shape, "vgg")
    pools = _pools(stem, shape)
    check_size("vgg", shape, lambda n: n >> sum(pools), "" if sum(pools) == 4 else 'stem="cifar" keeps twice the size')
    if include_top and None in shape:
        raise InputError(f"vgg: input_shape={shape}: the dense layers need known sizes; or include_top=False")
    inputs = x = image_input(shape, "vgg")
    for stage, (depth, filters) in enumerate(zip(spec.depths, CHANNELS, strict=True), 1):
        for i in range(1, depth + 1):
            conv = f"conv{stage}_{i}"
            x = parts.conv(x, parts.channels(filters), spec.third if i == 3 else 3, name=conv)
            x = parts.normalize(x, f"{conv}_norm")
            x = parts.activate(x, f"{conv}_act")
            if spec.lrn and conv == "conv1_1":
                x = layers.LocalResponseNorm(name="conv1_1_lrn")(x)
        if pools[stage - 1]:
            x = parts.max_pool(x, 2, 2, name=f"pool{stage}")
    if include_top:
        x = keras.layers.Flatten(name="flatten")(x)
        for fc in ("fc6", "fc7"):
            x = parts.dense(x, parts.channels(4096), name=fc)
            x = parts.activate(x, f"{fc}_act")
            x = layers.Dropout(dropout, name=f"{fc}_dropout")(x)
        x = classifier(parts, x, classes, classifier_activation, "fc8")
    weights = sum(spec.depths) + 3
    return keras.Model(inputs, x, name=name or f"vgg{weights}_{config.lower().replace('-', '_')}")


def _pools(stem: str, shape: Sequence[int | None]) -> tuple[bool, ...]:
    """Returns which stages end in pooling."""
    if stem not in ("auto", "imagenet", "cifar"):
        raise unknown("stem", stem, ("auto", "imagenet", "cifar"))
    small = stem == "cifar" or (stem == "auto" and all(n is not None and n < 64 for n in shape[:-1]))
    return (not small, True, True, True, True)


def vgg11(**kw: Any) -> keras.Model:
    """Builds VGG-11, column A: `vgg("A", ...)`."""
    return vgg("A", **kw)


def vgg13(**kw: Any) -> keras.Model:
    """Builds VGG-13, column B: `vgg("B", ...)`."""
    return vgg("B", **kw)


def vgg16(**kw: Any) -> keras.Model:
    """Builds VGG-16, column D: `vgg("D", ...)`."""
    return vgg("D", **kw)


def vgg19(**kw: Any) -> keras.Model:
    """Builds VGG-19, column E: `vgg("E", ...)`."""
    return vgg("E", **kw)
