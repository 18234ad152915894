"""Export: a SavedModel with its preprocessing and class names inside, proven in a fresh process before it appears.

The names load on first use, so that serving and predicting start without Keras.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "saved_model": "_saved_model",
    "onnx": "_formats",
    "openvino": "_formats",
    "litert": "_formats",
    "verify": "_verify",
    "predict": "_predict",
    "serve": "_serve",
    "Report": "_report",
    "Check": "_report",
    "Prediction": "_predict",
    "VerificationError": "_report",
}
__all__ = [*_HOMES]

if TYPE_CHECKING:  # type checkers and editors see what __getattr__ finds; `as` makes a name public to them
    from dlkit.export._formats import litert as litert
    from dlkit.export._formats import onnx as onnx
    from dlkit.export._formats import openvino as openvino
    from dlkit.export._predict import Prediction as Prediction
    from dlkit.export._predict import predict as predict
    from dlkit.export._report import Check as Check
    from dlkit.export._report import Report as Report
    from dlkit.export._report import VerificationError as VerificationError
    from dlkit.export._saved_model import saved_model as saved_model
    from dlkit.export._serve import serve as serve
    from dlkit.export._verify import verify as verify


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dlkit.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dlkit.export' has no attribute {name!r}; its names are {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
