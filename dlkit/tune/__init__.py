"""Hyperparameter search on KerasTuner's interface, with trials that continue instead of restarting."""

from dlkit.tune import space
from dlkit.tune._asha import Asha
from dlkit.tune._bohb import Bohb
from dlkit.tune._records import DamagedRecordWarning
from dlkit.tune._results import Search, TrialResult
from dlkit.tune._search import search
from dlkit.tune.hypermodels import HyperAlexNet, HyperCNN, HyperMLP, HyperResNet, HyperVGG
from dlkit.tune.oracles import ORACLES
from dlkit.tune.space import default_space

__all__ = [
    "search", "Search", "TrialResult", "Asha", "Bohb", "ORACLES", "default_space", "space",
    "HyperMLP", "HyperCNN", "HyperAlexNet", "HyperVGG", "HyperResNet", "DamagedRecordWarning",
]  # fmt: skip
