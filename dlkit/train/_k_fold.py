"""k-fold cross-validation: k runs, each validated on another part of the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dlkit._errors import InputError
from dlkit._files import write_json
from dlkit.data.pipeline import refuse_bad
from dlkit.train._fit import Result, fit


@dataclass(frozen=True)
class KFold:
    """What the folds gave.

    Attributes:
        results: of each fold, in order; `results[i].run_dir` holds its model.
        mean, std: of the folds' final validation metrics; the standard deviation is that of one fold (n - 1).
    """

    results: tuple[Result, ...]
    mean: dict[str, float]
    std: dict[str, float]


def k_fold(
    build: Callable[[], Any],
    recipe: Any,
    source: Any,
    *,
    k: int = 5,
    preprocess: Any,
    run_dir: str | Path,
    verbose: bool = True,
) -> KFold:
    """Trains k models, each on k - 1 parts of `source`, and measures each on the part it has not seen.

    The estimate of how well a recipe does on few data, with its spread. The same call after a kill continues: finished
    folds are not trained again, the one under way goes on where it was.

    Args:
        build: returns a new model; its weights are drawn from seed recipe.seed + fold.
        recipe: of every fold.
        source: all the data; keep a test set aside for the final figure.
        k: number of parts, equal shares of every class where there are classes.
        preprocess: the one definition of the input.
        run_dir: holds the folds' run directories fold_0 .. fold_{k-1}, and k_fold.json at the end.
        verbose: show each fold's progress.

    Raises:
        InputError: k is below 2 or above the number of samples, or what `fit` refuses.

    Example: `k_fold(lambda: cnn(..., classes=10), recipe, train, k=5, preprocess=preprocess, run_dir="runs/cv").mean`

    Reference: R. Kohavi, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection", 1995.
    """
    if not isinstance(k, int) or not 2 <= k <= len(source):
        raise InputError(f"k={k!r} must be a whole number from 2 to the {len(source)} samples of {source.name!r}")
    run_dir = Path(run_dir)
    results = []
    refuse_bad(source)  # once for all folds: parts of a source that was checked need no check
    parts = source.split(*[1 / k] * k, seed=recipe.seed, stratify=source.labels is not None)
    for i, part in enumerate(parts):
        rest = source.subset(np.flatnonzero(~np.isin(source.rows, part.rows)))
        keras.utils.set_random_seed(recipe.seed + i)
        results.append(
            fit(build(), recipe, rest, part, preprocess=preprocess, run_dir=run_dir / f"fold_{i}", verbose=verbose)
        )
    names = results[0].metrics
    mean = {name: math.fsum(r.metrics[name] for r in results) / k for name in names}
    std = {name: math.sqrt(math.fsum((r.metrics[name] - mean[name]) ** 2 for r in results) / (k - 1)) for name in names}
    folds = [{"seconds": r.seconds, "stopped": r.stopped, **r.metrics} for r in results]
    write_json(run_dir / "k_fold.json", {"mean": mean, "std": std, "folds": folds})
    return KFold(tuple(results), mean, std)
