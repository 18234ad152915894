"""The fully connected network, for classification and regression."""

from collections.abc import Sequence
from typing import Any

import keras

from dlkit import layers
from dlkit._errors import InputError
from dlkit.models._blocks import Parts, check_classes, checked_shape, classifier, image_input


def mlp(
    units: Sequence[int] = (128, 128),
    *,
    classes: int = 10,
    input_shape: Sequence[int | None] = (784,),
    norm: Any = "none",
    activation: Any = "relu",
    initializer: Any = "he",
    width: float = 1.0,
    classifier_activation: Any = None,
    include_top: bool = True,
    dropout: float = 0.0,
    epsilon: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a fully connected network of one or more hidden layers.

        h_1 = f(x W_1 + b_1),  h_k = f(h_{k-1} W_k + b_k),  o = h W + b

    Classification takes one output per class. Regression takes one output per target, `classes=1` for a single number,
    and `classifier_activation=None`, which leaves the outputs unbounded. Choose `cnn` for pictures: it knows that
    neighbouring pixels belong together.

    Args:
        units: size of every hidden layer; empty for a linear model.
        classes: number of outputs: classes, or regression targets.
        input_shape: features of one sample, such as `(13,)`; pictures are flattened.
        norm: name for `dlkit.layers.norm`, set between the linear map and the activation.
        activation: name for `dlkit.layers.activation`.
        initializer: name for `dlkit.initializers.get`.
        width: factor on every hidden layer.
        classifier_activation: None for logits and regression, "softmax" or "sigmoid" for probabilities.
        include_top: False returns the last hidden layer.
        dropout: rate after every hidden layer.
        epsilon: of the norm; None is the norm's own default.
        name: of the model.

    Input: (batch, ...). Output: (batch, classes), float32.

    Raises:
        InputError: units that are no positive whole numbers, or a wrong shape.

    Example:
        >>> mlp((64, 64), classes=1, input_shape=(13,)).count_params()
        5121

    Reference: lecture 000 (E. Sokolov), sections 2-4; lecture 003 (M. Gushchin), the network in matrix form.
    """
    sizes = (units,) if isinstance(units, int) else tuple(units)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise InputError(f"mlp: units={units!r} must be positive whole numbers, such as units=(128, 64)")
    check_classes(classes, "mlp")
    shape = checked_shape(input_shape, "mlp", ranks=(0, 1, 2, 3))
    if None in shape:
        raise InputError(f"mlp: input_shape={shape}: a fully connected layer needs every size")
    parts = Parts(norm, activation, initializer, width, epsilon)
    inputs = x = image_input(shape, "mlp", (0, 1, 2, 3)) if len(shape) > 1 else keras.Input(shape, name="features")
    if len(shape) > 1:
        x = keras.layers.Flatten(name="flatten")(x)
    for i, size in enumerate(sizes, 1):
        x = parts.dense(x, parts.channels(size, 1), name=f"fc{i}", bias=parts.bias)
        x = parts.normalize(x, f"fc{i}_norm")
        x = parts.activate(x, f"fc{i}_act")
        if dropout:
            x = layers.Dropout(dropout, name=f"fc{i}_dropout")(x)
    if include_top:
        x = classifier(parts, x, classes, classifier_activation, f"fc{len(sizes) + 1}")
    return keras.Model(inputs, x, name=name or "mlp")
