"""Data sets with random access, one preparation of inputs, and a training stream that is a pure function."""

from dlkit.data import augment
from dlkit.data._arrays import from_arrays
from dlkit.data._folder import from_folder
from dlkit.data._tfds import from_tfds, load
from dlkit.data.pipeline import eval_pipeline, train_pipeline
from dlkit.data.preprocess import Preprocess, Standardize
from dlkit.data.sources import Source

__all__ = [
    "Source", "from_arrays", "from_folder", "from_tfds", "load",
    "Preprocess", "Standardize",
    "augment",
    "train_pipeline", "eval_pipeline",
]  # fmt: skip
