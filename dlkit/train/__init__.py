"""Training: a recipe is a value, the stream is a pure function, and work survives a kill."""

from dlkit.train import losses, schedules, stopping
from dlkit.train._evaluate import evaluate
from dlkit.train._fit import DivergedError, Interrupted, Result, fit
from dlkit.train._k_fold import KFold, k_fold
from dlkit.train._lr_find import LrFind, lr_find
from dlkit.train._plan import Plan, plan
from dlkit.train._run_dir import Run, load_run
from dlkit.train.precision import FastMath, fast_math
from dlkit.train.recipe import Recipe
from dlkit.train.recipes import RECIPES
from dlkit.train.resume import DamagedCheckpointWarning

__all__ = [
    "Recipe", "RECIPES", "fit", "evaluate", "load_run", "plan", "fast_math", "lr_find", "k_fold",
    "Result", "Run", "Plan", "FastMath", "LrFind", "KFold", "schedules", "stopping", "losses",
    "DivergedError", "Interrupted", "DamagedCheckpointWarning",
]  # fmt: skip
