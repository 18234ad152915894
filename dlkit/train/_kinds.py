"""What a variable is for: the one rule behind weight decay, penalties and groups of learning rates."""

import re
from typing import Any

KINDS = ("kernel", "bias", "norm")
_NORM = ("gamma", "beta", "scale")


def kind(variable: Any) -> str:
    """Returns "norm" for scales and offsets of norms (and learnt betas), "bias" for other vectors, else "kernel".

    The last word of the name decides before the rank does: in a stage with stacked weights a gamma is a matrix.

    >>> import keras
    >>> [kind(keras.Variable(v, name=n)) for n, v in (("kernel", [[0.0]]), ("bias", [0.0]), ("bn_gamma", [[1.0]]))]
    ['kernel', 'bias', 'norm']
    """
    word = re.split("[/_]", variable.path)[-1]
    if word in _NORM:
        return "norm"
    return "kernel" if word != "bias" and len(variable.shape) > 1 else "bias"
