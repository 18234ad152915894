"""Which trials keep their checkpoints: the best few, and those that may still be promoted."""

import shutil
from pathlib import Path
from typing import Any

from dlkit.tune import _records

_LARGE = ("checkpoints", "best", "events", "model.keras")


def prune(
    ended: dict[str, dict[str, Any]], running: list[dict[str, Any]], directory: Path, keep: int, sign: int
) -> None:
    """Removes the weights of trials that nobody needs; histories and recipes stay.

    A trial keeps its weights while it is one of the `keep` best, while a trial that continues it is under way, and
    while it is in the better half of those that trained as long and were not continued. One that is promoted in spite
    of that trains again from the start, to the same bits.

    Args:
        ended: trial id to record.
        running: hyperparameter values of the trials under way.
        directory: of the search.
        keep: how many of the best keep their weights.
        sign: -1 if more of the objective is better, else 1.
    """
    good = {i: r for i, r in ended.items() if r["status"] == "COMPLETED"}
    ranked = sorted(good, key=lambda i: (sign * good[i]["score"], i))
    needed = set(ranked[:keep]) | {values.get("tuner/trial_id") for values in running}
    continued = {r["values"].get("tuner/trial_id") for r in ended.values()} | needed
    longest = max((r["values"].get("tuner/epochs") or 0 for r in good.values()), default=0)
    for epochs in {r["values"].get("tuner/epochs") for r in good.values()} - {None, longest}:
        rung = [i for i in ranked if good[i]["values"]["tuner/epochs"] == epochs]
        needed |= {i for i in rung[: (len(rung) + 1) // 2] if i not in continued}
    for trial_id in ended.keys() - needed:
        folder = _records.trial_folder(directory, trial_id)
        for path in [path for run in folder.glob("run*") for name in _LARGE if (path := run / name).exists()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
