"""The training loop: a stream that is a function of the sample counter, and a state that survives any kill."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import eval_pipeline, train_pipeline
from dlkit.train import _run_dir, optimizers, resume, schedules, tasks
from dlkit.train._progress import bar
from dlkit.train.precision import arithmetic
from dlkit.train.recipe import Recipe

SAVE_SECONDS = 60.0  # at most this much work is lost to a kill


class DivergedError(RuntimeError):
    """The loss is no longer finite; the checkpoint before it is kept."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C or SIGTERM after a checkpoint of the current step."""


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        history: one dict per epoch: epoch, step, loss, the metrics, val_*, learning_rate, seconds, waiting.
        metrics: `evaluate` of the final model on the validation source; empty without one.
        best: the row of `history` with the best validation (else training) accuracy or loss.
        seconds: time in training steps and validation, earlier parts of a resumed run included.
        run_dir: where everything lies.
    """

    history: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    best: dict[str, float]
    seconds: float
    run_dir: Path


@dataclass
class _State:
    """What the loop knows besides the variables; saved with every checkpoint."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    waiting: float = 0.0  # of epoch_seconds, the time spent waiting for data


def fit(
    model: keras.Model,
    recipe: Recipe,
    train: Any,
    validation: Any = None,
    *,
    preprocess: Any,
    run_dir: str | Path,
    resume: bool = True,
    deterministic: bool = True,
    stop_after: int | None = None,
    verbose: bool = True,
) -> Result:
    """Trains `model` in place, and continues exactly where a killed run stopped.

    Step s shows the samples s*batch .. (s+1)*batch - 1 of the endless stream; epoch e ends at step
    round((e + 1) * n / batch). Every pass of the stream shows each image once and none is dropped; the step at the
    end of an epoch may hold the last images of one pass and the first of the next.

    Args:
        model: any functional model whose input is `preprocess.input_shape`; logits or probabilities.
        recipe: the run as a value.
        train: the training source.
        validation: measured after every epoch, or None.
        preprocess: the one definition of the input, used again for evaluation and export.
        run_dir: folder of the run: recipe.json, history.csv, events/, checkpoints/ and, at the end, model.keras.
        resume: continue what `run_dir` holds; False refuses a folder that holds a run.
        deterministic: every TensorFlow operation gives the same bits each time (the same seed, the same model).
            The setting is TensorFlow's own and holds for the rest of the process.
        stop_after: stop after this many epochs of the recipe's; a later call without it continues to the end. The
            schedule spans `recipe.epochs` either way.
        verbose: show the progress with the time left.

    Returns:
        The result; `model` holds the final weights (the average where `recipe.ema` is set).

    Raises:
        InputError: model, data and recipe do not fit, or `run_dir` holds another run (the difference is shown).
        DivergedError: the loss became infinite or not a number.
        Interrupted: Ctrl-C or SIGTERM; call again with the same arguments to continue.
        OSError: the disk is full; the last good checkpoint is kept.

    Example: see README.md, "From Python".
    """
    run_dir = Path(run_dir)
    tasks.check(model, recipe.task, train, preprocess)
    if validation is not None and validation.classes != train.classes:
        raise InputError(f"the validation classes {validation.classes} are not the training classes {train.classes}")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    with _signals() as stopped, _run_dir.locked(run_dir):
        _run_dir.claim(run_dir, _run_dir.identity(model, recipe, train, preprocess), resume)
        run = _Run(model, recipe, train, validation, preprocess, run_dir)
        with arithmetic(recipe.precision):
            run.loop(run.epochs if stop_after is None else min(stop_after, run.epochs), stopped, verbose)
        return run.finish()


class _Run:
    """One run in this process: the compiled model, its stream and its state."""

    def __init__(self, model: Any, recipe: Recipe, train: Any, validation: Any, preprocess: Any, run_dir: Path):
        self.model, self.recipe, self.train, self.validation = model, recipe, train, validation
        self.preprocess, self.run_dir, self.epochs = preprocess, run_dir, recipe.epochs
        warmup = round(recipe.warmup_epochs * len(train) / recipe.batch)
        total = self.ends(self.epochs)
        self.schedule = schedules.get(recipe.schedule, recipe.peak_lr, total, min(warmup, total // 2))
        optimizer = optimizers.get(
            recipe.optimizer, self.schedule, model.trainable_variables,
            momentum=recipe.momentum, weight_decay=recipe.weight_decay, ema=recipe.ema,
        )  # fmt: skip
        model.compile(
            optimizer=optimizer,
            loss=tasks.loss(recipe.task, model, recipe.label_smoothing),
            metrics=tasks.metrics(recipe.task),
            jit_compile=False,  # XLA is slower for convolutions on CPU
        )
        probe = tf.zeros((1, model.output_shape[-1]))
        model.compute_metrics(None, probe, probe, None)  # builds the metrics: a checkpoint is read into them
        model.reset_metrics()
        self.events = tf.summary.create_file_writer(str(run_dir / "events"))
        self.state = _State()
        saved = resume.restore(self.checkpoints, self.variables)
        if saved is not None:
            self.state = _State(**saved)

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables, *self.model.metrics_variables]

    def ends(self, epoch: int) -> int:
        """The step at which `epoch` epochs are done."""
        return max(epoch, round(epoch * len(self.train) / self.recipe.batch))

    def loop(self, until: int, stopped: list[int], verbose: bool) -> None:
        state, total = self.state, self.ends(until)
        if state.step >= total:
            return
        recipe = self.recipe
        stream = iter(
            train_pipeline(
                self.train, self.preprocess, recipe.augment, recipe.batch, recipe.seed, start_step=state.step
            )
        )
        step = tf.function(self.model.train_step, reduce_retracing=True)
        saved = time.monotonic()
        with bar("train", total, state.step, verbose) as update:
            while state.step < total:
                start = time.monotonic()
                batch = next(stream)
                waited = time.monotonic()
                logs = step(batch)
                state.step += 1
                if state.step == self.ends(len(state.history) + 1):
                    self._end_epoch(start, waited)
                else:
                    self._count(start, waited)
                if stopped or state.step == total or time.monotonic() - saved > SAVE_SECONDS:
                    self._refuse_non_finite(logs)
                    self.save()
                    saved = time.monotonic()
                update(state.step, _text(state.history))
                if stopped and state.step < total:
                    raise Interrupted(f"stopped at step {state.step} of {total}; the same call continues from there")

    def _count(self, start: float, waited: float) -> None:
        self.state.waiting += waited - start
        self.state.epoch_seconds += time.monotonic() - start
        self.state.seconds += time.monotonic() - start

    def _end_epoch(self, start: float, waited: float) -> None:
        state = self.state
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self._refuse_non_finite(logs)
        self._count(start, waited)
        row = {"epoch": len(state.history) + 1, "step": state.step, **logs}
        began = time.monotonic()
        if self.validation is not None:
            with averaged(self.model):
                found = evaluate(self.model, self.validation, preprocess=self.preprocess)
            row |= {f"val_{name}": value for name, value in found.items()}
        row["learning_rate"] = float(self.schedule(state.step - 1))
        row["seconds"], row["waiting"] = round(state.epoch_seconds, 4), round(state.waiting, 4)
        state.seconds += time.monotonic() - began
        state.epoch_seconds = state.waiting = 0.0
        state.history.append(row)
        with self.events.as_default(step=state.step):
            for name, value in row.items():
                tf.summary.scalar(name, value)
        self.model.reset_metrics()

    def _refuse_non_finite(self, logs: Any) -> None:
        value = float(logs["loss"])
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {self.state.step} of {self.ends(self.epochs)}; the last checkpoint is in "
                f"{self.checkpoints}. A smaller peak_lr (now {self.recipe.peak_lr}) or a longer warm-up often helps."
            )

    def save(self) -> None:
        resume.save(self.checkpoints, self.state.step, self.variables, dataclasses.asdict(self.state))
        _run_dir.write_history(self.run_dir, self.state.history)
        self.events.flush()

    def finish(self) -> Result:
        state = self.state
        metrics: dict[str, float] = {}
        if self.recipe.ema:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.validation is not None:
            metrics = evaluate(self.model, self.validation, preprocess=self.preprocess)
        _run_dir.save_model(self.run_dir, self.model)
        self.events.close()
        return Result(tuple(state.history), metrics, _best(state.history), state.seconds, self.run_dir)


def evaluate(model: keras.Model, source: Any, *, preprocess: Any, batch: int = 256) -> dict[str, float]:
    """Measures `model` on every item of `source`, through the same preprocessing that is exported.

    Returns:
        Classification: `loss` (mean cross-entropy), `accuracy`, `top5_accuracy` above five classes. Regression and
        box: `loss` (mean squared error), `mae`; box adds `iou`. Fractions, not percent.

    Raises:
        InputError: the model does not fit the data.
    """
    tasks.check(model, source.task, source, preprocess)
    outputs, targets = [], []
    for inputs, target in eval_pipeline(source, preprocess, batch):
        outputs.append(np.asarray(model.predict_on_batch(inputs)))
        targets.append(np.asarray(target))
    probabilities = tasks.gives_probabilities(model)
    return tasks.score(source.task, np.concatenate(outputs), np.concatenate(targets), probabilities)


@contextlib.contextmanager
def averaged(model: Any) -> Iterator[None]:
    """Holds the optimizer's averaged weights in `model` inside the block, where it keeps any."""
    if not model.optimizer.use_ema:
        yield
        return
    current = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, current, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM in a list instead of dying in the middle of a step; only in the main thread."""
    caught: list[int] = []
    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread: the signals are somebody else's
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda received, frame: caught.append(received))
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _text(history: list[dict[str, float]]) -> str:
    if not history:
        return ""
    shown = ("loss", "accuracy", "mae", "val_loss", "val_accuracy", "val_iou")
    return "  ".join(f"{name} {history[-1][name]:.4f}" for name in shown if name in history[-1])


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    if not history:
        return {}
    for name, sign in (("val_accuracy", 1), ("val_iou", 1), ("val_loss", -1), ("accuracy", 1), ("loss", -1)):
        if name in history[-1]:
            return dict(max(history, key=lambda row: sign * row[name]))
    return dict(history[-1])
