"""The small network of the CIFAR-10 speed records: whitened patches, three groups of two convolutions, one matrix."""

from collections.abc import Sequence
from typing import Any

import keras

from dlkit import initializers, layers
from dlkit._errors import InputError
from dlkit.models._blocks import Parts, answer, check_classes, check_size, checked_shape, image_input

Tensor = Any


def cifar_fast(
    *,
    classes: int = 10,
    input_shape: Sequence[int | None] = (32, 32, 3),
    norm: Any = "batch",
    activation: Any = "gelu",
    initializer: Any = "dirac",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    filters: Sequence[int] = (64, 256, 256),
    patch: int = 2,
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds the network whose record is 94 % on CIFAR-10 in eight epochs.

        patches = act(conv 2x2, 24 filters);   three groups: conv 3x3, max pool 2, norm, act, conv 3x3, norm, act;
        maximum over positions;   classifier without bias

    The pooling before the first norm of a group halves what the norm and the activation read. Meant for recipes with
    `whiten=True`, which sets the first convolution to the eigenvectors of the pictures' patches, with both signs;
    for pictures of about 32 pixels and training times of minutes. `resnet_cifar` ends higher after hours.

    Args:
        classes: number of classes.
        input_shape: (height, width, channels); sizes may be None.
        norm: name for `dlkit.layers.norm`; "batch" comes without a factor and forgets fast (momentum 0.6), as in the
            record.
        activation: name for `dlkit.layers.activation`; "relu" takes less time per step and ended 0.7 points lower after
            five epochs (docs/training.md, Records).
        initializer: of the convolutions; "dirac" passes the inputs on unchanged, further channels are He's.
        width: factor on the groups' channels.
        classifier_activation: of the class scores: None gives logits, "softmax" probabilities.
        include_top: False returns the last map.
        filters: channels of the three groups.
        patch: side of the first kernel in pixels; it has 2 patch^2 channels filters.
        epsilon: of the norm; None is the norm's own default.
        name: of the model.

    Input: (batch, height, width, channels). Output: (batch, classes), float32.

    Raises:
        InputError: an unknown word, numbers that are not positive, too small an input.

    Example:
        >>> cifar_fast(width=0.25).count_params()
        127384

    Reference: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.1 and listing 5,
    https://arxiv.org/abs/2404.00498; D. Page, "How to train your ResNet", 2018; T. Swanson, hlb-CIFAR10, 2023.
    """
    check_classes(classes, "cifar_fast")
    shape = checked_shape(input_shape, "cifar_fast")
    for value in (patch, *filters) if isinstance(filters, (list, tuple)) else (filters, None):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"cifar_fast: patch={patch!r} must be a positive whole number and filters={filters!r} a tuple of them"
            )
    check_size("cifar_fast", shape, lambda n: (n - patch + 1) // 2 ** len(filters))
    parts = Parts(norm, activation, initializer, width, epsilon)
    inputs = image_input(shape, "cifar_fast")
    stem = Parts(norm, activation, "he_uniform" if initializer == "dirac" else initializer, width, epsilon)
    x = stem.conv(inputs, 2 * patch * patch * (shape[-1] or 3), patch, name="patches", padding=0, bias=True)
    x = parts.activate(x, "patches_act")
    for group, count in enumerate(filters, 1):
        for i in (1, 2):
            label = f"conv{group}_{i}"
            x = _convolution(parts, x, parts.channels(count), label)
            if i == 1:
                x = parts.max_pool(x, 2, 2, name=f"pool{group}")
            x = parts.activate(_normalised(parts, x, f"{label}_norm"), f"{label}_act")
    if include_top:
        x = keras.layers.GlobalMaxPooling2D(name="pool")(x)
        small = keras.initializers.RandomNormal(stddev=1 / x.shape[-1])
        x = keras.layers.Dense(classes, use_bias=False, kernel_initializer=small, name="fc")(x)
        x = answer(x, classifier_activation, "predictions")
    return keras.Model(inputs, x, name=name or "cifar_fast")


def _convolution(parts: Parts, x: Tensor, filters: int, name: str) -> Tensor:
    """Returns a 3x3 convolution that begins as the identity where `initializer` is "dirac"."""
    if parts.initializer != "dirac":
        return parts.conv(x, filters, 3, name=name)
    start = initializers.Dirac(rest="he_uniform")
    return keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=parts.bias, kernel_initializer=start, name=name
    )(x)  # fmt: skip


def _normalised(parts: Parts, x: Tensor, name: str) -> Tensor:
    if parts.norm != "batch":
        return parts.normalize(x, name)
    own = {} if parts.epsilon is None else {"epsilon": parts.epsilon}
    return layers.norm("batch", momentum=0.6, scale=False, name=name, **own)(x)
