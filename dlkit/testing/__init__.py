"""The contract that every layer, model and augmentation passes; usable on your own ones.

Each check raises AssertionError with what was expected, and needs no test framework:

    dlkit.testing.check_layer(lambda: MyNorm(axis=-1), input_shape=(2, 5, 5, 8))

The checks load on first use, because those of layers and models run on every Keras backend and those of
augmentations need TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {"check_layer": "_layers", "check_model": "_models", "check_augmentation": "_augment"}
__all__ = ["check_layer", "check_model", "check_augmentation"]

if TYPE_CHECKING:
    from dlkit.testing._augment import check_augmentation
    from dlkit.testing._layers import check_layer
    from dlkit.testing._models import check_model


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"dlkit.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dlkit.testing' has no attribute {name!r}; its checks are {', '.join(_HOME)}")
