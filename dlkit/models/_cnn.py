"""The lectures' template of a convolutional network, for signals, pictures and video."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from dlkit import layers
from dlkit._errors import InputError, unknown
from dlkit.models._blocks import (
    Parts,
    average_pool,
    check_classes,
    check_size,
    checked_shape,
    classifier,
    global_pool,
    image_input,
    out_size,
)

Tensor = Any
POSITIONS = ("before", "after")
DOWNSAMPLE = ("max", "average", "stride", "none")
HEADS = ("dense", "average")
KINDS = ("conv", "inception")


def cnn(
    blocks: int = 3,
    convs: int | Sequence[int] = 2,
    dense: int | Sequence[int] = 1,
    *,
    classes: int = 10,
    input_shape: Sequence[int | None] = (32, 32, 3),
    norm: Any = "none",
    activation: Any = "relu",
    initializer: Any = "he",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    filters: int | Sequence[int] = 32,
    kernel: int = 3,
    strides: int = 1,
    padding: int | str = "same",
    dilation: int = 1,
    kind: str = "conv",
    norm_position: str = "before",
    downsample: str = "max",
    pool: int = 2,
    head: str = "dense",
    units: int = 128,
    dropout: float = 0.0,
    stem: str = "cifar",
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds the template INPUT -> [[CONV -> RELU]*N -> POOL?]*M -> [FC -> RELU]*K -> Softmax.

    M is `blocks`, N is `convs`, K is `dense`. The rank follows the input: (length, channels) is one-dimensional, a
    picture two-, a video (frames, height, width, channels) three-dimensional. The first network to try on new data, and
    the one to vary one hyperparameter at a time; `vgg` and `resnet` are the papers' fixed tables.

    Args:
        blocks: M, the number of stages; each halves the map.
        convs: N, convolutions per stage; a tuple gives one number for each stage.
        dense: K, the number of hidden dense layers of `units` each, or a tuple of their sizes.
        classes: number of classes.
        input_shape: positions, then channels. Sizes may be None with `head="average"` and `dense=0`, or without top.
        norm: name for `dlkit.layers.norm`.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`.
        width: factor on every channel and unit count.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the last map.
        filters: of the first stage, doubled in each further one; a tuple gives one number for each stage.
        kernel: K, the filter's side in pixels.
        strides: S, the step of each stage's first convolution.
        padding: P, pixels of zeros on each side, or "same": dilation (K - 1) / 2, which keeps the size at stride 1.
        dilation: step between the pixels a filter reads; widens the receptive field without parameters.
        kind: "conv", or "inception": each convolution becomes four concatenated branches, see `inception`.
        norm_position: "before" the activation (the usual place) or "after" it.
        downsample: how a stage ends: "max" or "average" pooling of `pool` pixels, "stride": its last convolution takes
            that step (learnt, as in later networks), or "none".
        pool: side and step of the pooling, or the step.
        head: "dense" flattens the last map; "average" takes each channel's mean, far fewer parameters.
        units: size of each hidden dense layer.
        dropout: rate after each hidden dense layer.
        stem: "cifar" starts with the template at once, "imagenet" shrinks large pictures four times first (7x7 with
            stride 2, pooling); "auto" takes the latter from 64 pixels.
        epsilon: of the norm; None is the norm's own default.
        name: of the model.

    Sizes follow L_out = floor((L_in + 2P - dilation (K - 1) - 1) / S) + 1. Input: (batch, ..., channels). Output:
    (batch, classes), float32.

    Raises:
        InputError: an unknown word, numbers that are not positive, tuples of a wrong length, too small an input.

    Example:
        >>> cnn(2, 1, 0, input_shape=(100, 1), head="average").output_shape
        (None, 10)

    Reference: lecture 004 (I. Ivanov), "Template of a deep CNN"; lecture 000 (E. Sokolov), sections 5.1-5.5.
    """
    _check_words(norm_position, downsample, head, kind, stem)
    numbers = {"blocks": blocks, "kernel": kernel, "strides": strides, "dilation": dilation, "pool": pool}
    for what, count in numbers.items():
        _positive(count, what)
    check_classes(classes, "cnn")
    shape = checked_shape(input_shape, "cnn", ranks=(1, 2, 3))
    hidden = _hidden(dense, units)
    pad = dilation * (kernel - 1) // 2 if padding == "same" else padding
    if not isinstance(pad, int) or pad < 0:
        raise InputError(f'cnn: padding={padding!r} must be "same" or a number of pixels, such as 1')
    large = stem == "imagenet" or (stem == "auto" and all(n is None or n >= 64 for n in shape[:-1]))
    stages = _Stages(
        _per_stage(convs, blocks, "convs", 1), _per_stage(filters, blocks, "filters", 2),
        kernel, strides, pad, dilation, kind, norm_position, downsample, pool,
    )  # fmt: skip
    check_size("cnn", shape, lambda n: stages.last(out_size(out_size(n, 7, 2, 3), 3, 2, 1) if large else n))
    if include_top and head == "dense" and None in shape:
        raise InputError(f'cnn: input_shape={shape}: dense layers on the map need known sizes; or head="average"')
    parts = Parts(norm, activation, initializer, width, epsilon)
    inputs = x = image_input(shape, "cnn", (1, 2, 3))
    if large:
        x = parts.conv(x, parts.channels(stages.filters[0]), 7, name="conv0", strides=2, padding=3)
        x = parts.max_pool(_finish(parts, x, "conv0", norm_position), 3, 2, name="pool0", padding=1)
    x = stages(parts, x)
    if include_top:
        x = global_pool(x) if head == "average" else keras.layers.Flatten(name="flatten")(x)
        for i, size in enumerate(hidden, 1):
            x = parts.activate(parts.dense(x, parts.channels(size), name=f"fc{i}"), f"fc{i}_act")
            x = layers.Dropout(dropout, name=f"fc{i}_dropout")(x) if dropout else x
        x = classifier(parts, x, classes, classifier_activation, f"fc{len(hidden) + 1}")
    return keras.Model(inputs, x, name=name or "cnn")


@dataclasses.dataclass(frozen=True)
class _Stages:
    """The [[CONV -> RELU]*N -> POOL?]*M of the template as data."""

    counts: tuple[int, ...]
    filters: tuple[int, ...]
    kernel: int
    strides: int
    padding: int
    dilation: int
    kind: str
    norm_position: str
    downsample: str
    pool: int

    def step(self, i: int, count: int) -> int:
        """Returns the stride of a stage's i-th convolution, counted from 0."""
        learnt = self.pool if self.downsample == "stride" and i == count - 1 else 1
        return (self.strides if i == 0 else 1) * learnt

    def last(self, n: int) -> int:
        """Returns the size of the last map for an input of n pixels; 0 if a window does not fit."""
        for count in self.counts:
            for i in range(count):
                step = self.step(i, count)
                inception = self.kind == "inception"
                n = -(-n // step) if inception else out_size(n, self.kernel, step, self.padding, self.dilation)
            n = n // self.pool if self.downsample in ("max", "average") else n
        return n

    def __call__(self, parts: Parts, x: Tensor) -> Tensor:
        """Returns the last map."""
        for stage, (count, filters) in enumerate(zip(self.counts, self.filters, strict=True), 1):
            for i in range(count):
                name, step = f"conv{stage}_{i + 1}", self.step(i, count)
                if self.kind == "inception":
                    x = inception(parts, x, filters, name, strides=step, norm_position=self.norm_position)
                    continue
                sizes: dict[str, Any] = {"strides": step, "padding": self.padding, "dilation": self.dilation}
                x = parts.conv(x, parts.channels(filters), self.kernel, name=name, **sizes)
                x = _finish(parts, x, name, self.norm_position)
            if self.downsample == "max":
                x = parts.max_pool(x, self.pool, self.pool, name=f"pool{stage}")
            elif self.downsample == "average":
                x = average_pool(x, self.pool, self.pool, name=f"pool{stage}")
        return x


def _check_words(norm_position: str, downsample: str, head: str, kind: str, stem: str) -> None:
    for value, word, allowed in (
        (norm_position, "norm_position", POSITIONS),
        (downsample, "downsample", DOWNSAMPLE),
        (head, "head", HEADS),
        (kind, "kind", KINDS),
        (stem, "stem", ("auto", "imagenet", "cifar")),
    ):
        if value not in allowed:
            raise unknown(word, value, allowed)


def inception(
    parts: Parts, x: Tensor, filters: int, name: str, *, strides: int = 1, norm_position: str = "before"
) -> Tensor:
    """Returns an Inception block: four branches side by side, concatenated, for `cnn(kind="inception")`.

        1x1 | 1x1 -> 1x3 -> 3x1 | 1x1 -> 1x5 -> 5x1 | 3x3 maximum -> 1x1

    The 3x3 and the 5x5 are split into one-dimensional convolutions, one for each axis: n k instead of k**n weights per
    pair of channels. Branches get 1/4, 3/8, 1/8 and 1/4 of the filters.

    Reference: C. Szegedy et al., "Going deeper with convolutions", 2014, figure 2b; "Rethinking the Inception
    Architecture", 2015, section 3.2; lecture 004 (I. Ivanov), note on the template.
    """
    rank = len(x.shape) - 2
    share = [parts.channels(max(1, filters * part // 8)) for part in (2, 3, 1, 2)]

    def unit(y: Tensor, channels: int, kernel: Sequence[int], label: str, step: int = 1) -> Tensor:
        y = parts.conv(y, channels, kernel, name=f"{name}_{label}", strides=step)
        return _finish(parts, y, f"{name}_{label}", norm_position)

    ones = (1,) * rank
    branches = [unit(x, share[0], ones, "1x1", strides)]
    for size, channels in ((3, share[1]), (5, share[2])):
        y = unit(x, max(2, channels // 2), ones, f"{size}x{size}_reduce", strides)
        for axis in range(rank):
            line = tuple(size if a == axis else 1 for a in range(rank))
            y = unit(y, channels, line, f"{size}x{size}_axis{axis + 1}")
        branches.append(y)
    y = parts.max_pool(x, 3, 1, name=f"{name}_pool", padding=1)
    branches.append(unit(y, share[3], ones, "pool_project", strides))
    return keras.layers.Concatenate(name=f"{name}_concat")(branches)


def _finish(parts: Parts, x: Tensor, name: str, norm_position: str) -> Tensor:
    """Returns norm and activation of x in the order asked for."""
    if norm_position == "before":
        return parts.activate(parts.normalize(x, f"{name}_norm"), f"{name}_act")
    return parts.normalize(parts.activate(x, f"{name}_act"), f"{name}_norm")


def _hidden(dense: int | Sequence[int], units: int) -> tuple[int, ...]:
    """Returns the size of every hidden dense layer."""
    if isinstance(dense, int) and dense < 0:
        raise InputError(f"cnn: dense={dense!r} must be a number of layers, 0 for none, or a tuple of their sizes")
    sizes = (units,) * dense if isinstance(dense, int) else tuple(dense)
    for size in sizes:
        _positive(size, "units" if isinstance(dense, int) else "dense")
    return sizes


def _positive(value: Any, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"cnn: {what}={value!r} must be a positive whole number")


def _per_stage(value: int | Sequence[int], stages: int, what: str, growth: int) -> tuple[int, ...]:
    """Returns one number per stage; a single number grows by `growth` from stage to stage."""
    numbers = tuple(value * growth**i for i in range(stages)) if isinstance(value, int) else tuple(value)
    if len(numbers) != stages:
        raise InputError(f"cnn: {what}={value!r} has {len(numbers)} numbers for {stages} blocks")
    for n in numbers:
        _positive(n, what)
    return numbers
