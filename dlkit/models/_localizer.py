"""localizer(): one box per picture, the task of the first lecture."""

from typing import Any

import keras

from dlkit import initializers
from dlkit._errors import InputError
from dlkit.models._blocks import answer, global_pool
from dlkit.models._endpoints import endpoints


def localizer(
    backbone: keras.Model,
    *,
    activation: Any = "sigmoid",
    pooling: str = "flatten",
    initializer: Any = "glorot",
    name: str = "localizer",
) -> keras.Model:
    """Builds a network that answers with the box of the one object in a picture.

        (x, y, width, height) = sigmoid(W h + b), all four as fractions of the picture

    The lecture's loss is the squared distance of the four numbers, `loss="mse"`.

    Args:
        backbone: any model of this package. A classifier gives its last feature map and keeps its weights, so one that
            was trained can be reused.
        activation: of the four numbers. "sigmoid" keeps them inside the picture; None is the lecture's regression.
        pooling: "flatten" lets the head see where in the map something is; "average" takes the mean over positions,
            which works for any input size and has to tell the place from the channels alone.
        initializer: name for `dlkit.initializers.get`.
        name: of the model.

    Input: the backbone's. Output: (batch, 4), float32.

    Raises:
        InputError: the backbone has no feature map, "flatten" on a map of unknown size, or an unknown activation.

    Example:
        >>> from dlkit import models
        >>> models.localizer(models.resnet_cifar(8, width=0.5)).output_shape
        (None, 4)

    Reference: lecture 001 (E. Sokolov), "Example of a task: object detection" and "Loss function".
    """
    if pooling not in ("flatten", "average"):
        raise InputError(f'localizer: pooling={pooling!r} must be "flatten" or "average"')
    if len(backbone.output.shape) > 2:
        x = backbone.output
    else:
        x = list(endpoints(backbone).values())[-1]
    if pooling == "flatten":
        if None in x.shape[1:]:
            raise InputError('localizer: pooling="flatten" needs a known input size; or pooling="average"')
        x = keras.layers.Flatten(name="box_flatten")(x)
    else:
        x = global_pool(x, "box_pool")
    x = keras.layers.Dense(4, kernel_initializer=initializers.get(initializer), name="box_fc")(x)
    return keras.Model(backbone.input, answer(x, activation, "box"), name=name)
