"""What a search may vary: a function from KerasTuner's hyperparameters to overrides of a builder and a recipe."""

from typing import Any


def default_space(hp: Any) -> dict[str, dict[str, Any]]:
    """A small space that suits every convolutional builder: learning rate, weight decay, smoothing and width.

    A space of your own is any function of this shape. `hp` is a `keras_tuner.HyperParameters`; the result holds keyword
    arguments for the builder under "model" and fields of the recipe under "recipe":

    >>> import keras_tuner
    >>> default_space(keras_tuner.HyperParameters())["model"]
    {'width': 1.0}
    """
    return {
        "model": {"width": hp.Choice("width", [0.5, 0.75, 1.0], default=1.0)},
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.01, 0.5, sampling="log", default=0.1),
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log", default=5e-4),
            "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        },
    }
