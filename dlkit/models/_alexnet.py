"""AlexNet: the two-column network of 2012 and the single column of 2014."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from dlkit import layers
from dlkit._errors import InputError, unknown
from dlkit.models._blocks import Parts, check_classes, check_size, checked_shape, classifier, image_input, out_size


@dataclasses.dataclass(frozen=True)
class Spec:
    """One of the two networks."""

    filters: tuple[int, int, int, int, int]
    groups: tuple[int, int, int, int, int]  # 2 where the columns do not see each other
    lrn: bool  # local response norm after the first two convolutions
    ones: tuple[str, ...]  # layers whose biases start at 1, to feed the rectifiers positive inputs


SPECS = {
    2: Spec((96, 256, 384, 384, 256), (1, 2, 1, 2, 2), True, ("conv2", "conv4", "conv5", "fc6", "fc7")),
    1: Spec((64, 192, 384, 256, 256), (1, 1, 1, 1, 1), False, ()),
}
KERNELS = (11, 5, 3, 3, 3)
POOLED = (1, 2, 5)


def alexnet(
    columns: int = 2,
    *,
    classes: int = 1000,
    input_shape: Sequence[int | None] = (224, 224, 3),
    norm: Any = "none",
    activation: Any = "relu",
    initializer: Any = "he",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    dropout: float = 0.5,
    lrn: bool | None = None,
    stem: str = "imagenet",
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds AlexNet: five convolutions, overlapping pooling after the first, second and fifth, three dense layers.

    `columns=2` is the 2012 network: two towers that meet only at conv3 and in the dense layers (grouped convolutions),
    local response normalisation after the first two convolutions, 60,965,224 parameters. `columns=1` is the single
    tower of "One weird trick", 61,100,840 parameters. Choose `resnet` for accuracy; AlexNet is here for its history,
    its large first filters and its low number of multiply-adds.

    Args:
        columns: 2 or 1, see above.
        classes: number of classes.
        input_shape: height, width, channels. The first convolution pads 2, so 224 and 227 pixels give the same layers.
        norm: name for `dlkit.layers.norm`, set between convolution and activation; "none" is the paper.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`. The paper drew from N(0, 0.01**2), which the He variance
            replaces by default: slim copies do not train from the former.
        width: factor on every channel and unit count, for slim copies.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the map after the last pooling.
        dropout: rate of fc6 and fc7 (0.5 in both papers), after them with two columns, before them with one.
        lrn: local response normalisation; None is the paper's (two columns: yes).
        stem: "imagenet" is the paper, 11x11 with stride 4; "cifar" is 3x3 with stride 1; "auto" takes the latter below
            64 pixels.
        epsilon: of the norm; None is the norm's own default.
        name: of the model.

    Input: (batch, height, width, channels). Output: (batch, classes), float32.

    Raises:
        InputError: columns other than 1 and 2, unknown stem, wrong shape, an input below 63 pixels (15 with the small
            stem).

    Example:
        >>> alexnet(columns=2, classes=10, input_shape=(131, 131, 3), width=0.125).get_layer("conv2").groups
        2

    Reference: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012, section 3; A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
    https://arxiv.org/abs/1404.5997; lecture 000 (E. Sokolov), section 8.1.
    """
    if columns not in SPECS or isinstance(columns, bool):
        raise InputError(f"alexnet: columns={columns!r} must be 2 (the paper of 2012) or 1 (the single tower of 2014)")
    spec, parts = SPECS[columns], Parts(norm, activation, initializer, width, epsilon)
    check_classes(classes, "alexnet")
    shape = checked_shape(input_shape, "alexnet")
    first = _stem(stem, shape)
    check_size("alexnet", shape, lambda n: _last(n, first), "" if first[1] == 1 else 'stem="cifar" fits small pictures')
    if include_top and None in shape:
        raise InputError(f"alexnet: input_shape={shape}: the dense layers need known sizes; or include_top=False")
    with_lrn = spec.lrn if lrn is None else lrn
    inputs = x = image_input(shape, "alexnet")
    for i, (filters, groups, kernel) in enumerate(zip(spec.filters, spec.groups, KERNELS, strict=True), 1):
        conv = f"conv{i}"
        size, strides, padding = first if i == 1 else (kernel, 1, kernel // 2)
        ones = "ones" if conv in spec.ones else "zeros"
        filters = parts.channels(filters, 2 * columns)
        x = parts.conv(
            x, filters, size, name=conv, strides=strides, padding=padding, groups=groups, bias_initializer=ones
        )
        x = parts.normalize(x, f"{conv}_norm")
        x = parts.activate(x, f"{conv}_act")
        if with_lrn and i <= 2:
            x = layers.LocalResponseNorm(name=f"norm{i}")(x)
        if i in POOLED:
            x = parts.max_pool(x, 3, 2, name=f"pool{POOLED.index(i) + 1 if i < 5 else 5}")
    if include_top:
        x = _dense(parts, spec, x, dropout, before=columns == 1)
        x = classifier(parts, x, classes, classifier_activation, "fc8")
    return keras.Model(inputs, x, name=name or f"alexnet_{columns}_column{'s' if columns > 1 else ''}")


def _dense(parts: Parts, spec: Spec, x: Any, dropout: float, before: bool) -> Any:
    """Returns fc6 and fc7; the single tower drops what enters them, the two columns what leaves them."""
    x = keras.layers.Flatten(name="flatten")(x)
    for fc in ("fc6", "fc7"):
        if before:
            x = layers.Dropout(dropout, name=f"{fc}_dropout")(x)
        x = parts.dense(x, parts.channels(4096), name=fc, bias_initializer="ones" if fc in spec.ones else "zeros")
        x = parts.activate(x, f"{fc}_act")
        if not before:
            x = layers.Dropout(dropout, name=f"{fc}_dropout")(x)
    return x


def _stem(stem: str, shape: Sequence[int | None]) -> tuple[int, int, int]:
    """Returns kernel, stride and padding of the first convolution."""
    if stem not in ("auto", "imagenet", "cifar"):
        raise unknown("stem", stem, ("auto", "imagenet", "cifar"))
    small = stem == "cifar" or (stem == "auto" and all(n is not None and n < 64 for n in shape[:-1]))
    return (3, 1, 1) if small else (11, 4, 2)


def _last(n: int, first: tuple[int, int, int]) -> int:
    """Returns the size of the last map; 0 if a pooling window does not fit."""
    n = out_size(n, first[0], first[1], first[2])
    for _ in POOLED:
        n = out_size(n, 3, 2)
    return n
