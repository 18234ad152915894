"""A run that dies: `python killed_run.py RUN_DIR STEP:PLACE ...` runs `fit` once per kill, each in a process of its own
that SIGKILL ends, and a last time to the end.

PLACE is where in that step: "step" after the update, before anything of it is saved; "save" with half of the next
checkpoint written. The processes are forks of one that has loaded everything and run nothing.
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from digits_run import PREPROCESS, model, sources

from dlkit.data.augment import Affine, MixUp
from dlkit.train import Recipe, _fit, fit, resume
from dlkit.train.stopping import Patience, Plateau

RECIPE = Recipe(
    epochs=8, batch=32, optimizer="adamw", peak_lr=0.05, warmup_epochs=1.0, schedule="cosine", label_smoothing=0.1,
    ema=0.8, augment=(Affine(rotate=10, shift=0.1), MixUp(0.2)), accumulate=2, clip_norm=1.0, seed=3,
    stop=(Patience("val_loss", patience=2, min_delta=0.1),),
    plateau=Plateau("loss", factor=0.5, patience=1, min_delta=0.1),
)  # fmt: skip
STEPS = 44  # of round(8 * 200 / 32) = 50: patience ends it after the seventh epoch


def run(run_dir, step=0, place=""):
    """Trains to the end, or until SIGKILL at `place` of `step`."""
    counted, write = _fit._Run._count, resume.write_bytes
    at = [0]

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def count(self, *times):
        counted(self, *times)
        at[0] = self.state.step
        if place == "step" and at[0] == step:
            die()

    def half(path, content):
        if place == "save" and at[0] >= step:
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.half.tmp").write_bytes(content[: len(content) // 2])
            die()
        return write(path, content)

    _fit._Run._count, resume.write_bytes = count, half
    train, validation = sources()
    fit(model(), RECIPE, train, validation, preprocess=PREPROCESS, run_dir=run_dir, verbose=False)


if __name__ == "__main__":
    _fit.SAVE_SECONDS = 0.03  # a checkpoint every few steps: what a kill loses is done again
    for kill in [*sys.argv[2:], ""]:
        child = os.fork()
        if not child:
            step, _, place = kill.partition(":")
            run(sys.argv[1], int(step or 0), place)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(kill, os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
