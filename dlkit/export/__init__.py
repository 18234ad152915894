"""Export: a SavedModel with its preprocessing and class names inside, proven in a fresh process before it appears."""

from dlkit.export._predict import Prediction, predict
from dlkit.export._report import Check, Report, VerificationError
from dlkit.export._saved_model import saved_model
from dlkit.export._verify import verify

__all__ = ["saved_model", "verify", "predict", "Report", "Check", "Prediction", "VerificationError"]
