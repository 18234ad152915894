"""The training loop: a stream that is a function of the sample counter, and a state that survives any kill."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit._files import write_json
from dlkit.data import eval_pipeline, train_pipeline
from dlkit.data.pipeline import refuse_bad
from dlkit.train import (
    _diagnose,
    _distribute,
    _evaluate,
    _run_dir,
    _signals,
    _sizes,
    _traced,
    averaging,
    precision,
    resume,
    stopping,
    tasks,
    whitening,
)  # fmt: skip
from dlkit.train._freeze import frozen
from dlkit.train._progress import bar, figures
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
        stopped: why the run ended before its last epoch, in words; "" if it did not.
    """

    history: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    best: dict[str, float]
    seconds: float
    run_dir: Path
    stopped: str = ""


@dataclass
class _State:
    """What the loop knows besides the variables; saved with every checkpoint."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    waiting: float = 0.0  # of epoch_seconds, the time spent waiting for data
    sums: list[float] = field(default_factory=list)  # of this epoch's steps, column by column
    steps: int = 0  # of this epoch
    stopped: str = ""


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
    round((e + 1) * n / batch). No image is dropped; the step at the end of an epoch may hold images of two passes.

    Args:
        model: any functional model whose input is `preprocess.input_shape`; logits or probabilities. Built inside the
            scope of a `tf.distribute` strategy it trains on all its replicas, see docs/training.md.
        recipe: the run as a value.
        train: the training source.
        validation: measured after every epoch, or None; a run goes on with the one that it began with.
        preprocess: the one definition of the input, used again for evaluation and export.
        run_dir: folder of the run: recipe.json, history.csv, events/, checkpoints/ and, at the end, model.keras. An
            error before the first checkpoint leaves it as it was.
        resume: continue what `run_dir` holds; False refuses a folder that holds a run.
        deterministic: every TensorFlow operation gives the same bits each time, for the rest of the process.
        stop_after: stop after this many of the recipe's epochs; a later call without it continues to the end.
        verbose: show the progress with the time left.

    Returns:
        The result; `model` holds the final weights: the average where the recipe keeps one, those of the best epoch
        where a `stopping.Patience` restores them.

    Raises:
        InputError: model, data and recipe do not fit, a file cannot be read, or `run_dir` holds another run (the
            difference is shown).
        DivergedError: the loss became infinite or not a number; the message names the layer where it did.
        Interrupted: Ctrl-C or SIGTERM; call again with the same arguments to continue.
        OSError: the disk is full; the last good checkpoint is kept.

    Example: see README.md, "From Python".
    """
    run_dir = Path(run_dir)
    _check(model, recipe, train, validation, preprocess)
    if stop_after is not None and not (isinstance(stop_after, int) and stop_after >= 1):
        raise InputError(f"stop_after={stop_after!r} must be at least 1 epoch, or None to train all of them")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = _distribute.Workers.of(model, recipe)
    identity = _run_dir.identity(model, recipe, train, validation, preprocess)
    with _signals.collected() as stopped, workers.locked(run_dir), workers.claimed(run_dir, identity, resume):
        with workers.strategy.scope(), frozen(model, recipe.freeze):  # their end comes before the model is saved
            run = _Run(model, recipe, train, validation, preprocess, run_dir, workers, deterministic)
            with contextlib.closing(run.events), precision.arithmetic(precision.of(recipe)):
                run.loop(min(stop_after or run.epochs, run.epochs), stopped, verbose)
            row = run.settle()
        result = run.finish(row)
    if stopped:
        raise Interrupted(f"stopped after the last step: all is saved in {run_dir}, the same call returns the result")
    return result


def _check(model: Any, recipe: Recipe, train: Any, validation: Any, preprocess: Any) -> None:
    """Refuses what does not fit together or cannot be read, before anything is written."""
    tasks.check(model, recipe.task, train, preprocess)
    _sizes.check(model, recipe, preprocess)
    if validation is not None and validation.classes != train.classes:
        raise InputError(f"the validation classes {validation.classes} are not the training classes {train.classes}")
    refuse_bad(train)
    if validation is not None:
        tasks.check(model, recipe.task, validation, preprocess)
        refuse_bad(validation)


class _Run:
    """One run in this process: the compiled model, its stream and its state."""

    def __init__(
        self, model: Any, recipe: Recipe, train: Any, validation: Any, preprocess: Any, run_dir: Path, workers: Any,
        deterministic: bool,
    ):  # fmt: skip
        self.model, self.recipe, self.train, self.validation = model, recipe, train, validation
        self.preprocess, self.run_dir, self.workers, self.epochs = preprocess, run_dir, workers, recipe.epochs
        self._check_columns()
        if recipe.whiten:
            whitening.prepare(model)
        warmup = round(recipe.warmup_epochs * len(train) / recipe.batch)
        total = self.ends(self.epochs)
        traced = _traced.prepared(
            model, recipe, total, min(warmup, total // 2), self.measures, workers, deterministic
        )  # fmt: skip
        self.schedule, self.averaging, self.step = traced.schedule, traced.averaging, traced.step
        self.predict, self.training_pass = traced.predict, traced.training_pass
        self.state = _State()
        saved = resume.restore(self.checkpoints, self.variables)
        if saved is not None:
            self.state = _State(**saved)
            self._rescale()
        elif recipe.whiten:
            whitening.initialise(model, np.concatenate(list(self._plain_inputs(5000))))
        events = str(run_dir / "events")
        self.events = tf.summary.create_file_writer(events) if workers.chief else tf.summary.create_noop_writer()

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the best epoch, where a criterion restores them."""
        return self.run_dir / "best"

    @property
    def variables(self) -> list[Any]:
        scale = [self.schedule.scale] if self.recipe.plateau is not None else []
        return [*self.model.variables, *self.model.optimizer.variables, *self.averaging.variables, *scale]

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that the recipe's criteria and clipping add to the history."""
        wanted = [name for criterion in self.recipe.stop for name in criterion.measures]
        if self.recipe.clip_norm:
            wanted.append("gradient_norm")
        return tuple(sorted(set(wanted)))

    @property
    def patience(self) -> Any:
        """The criterion whose best weights are kept, or None."""
        found = [c for c in self.recipe.stop if isinstance(c, stopping.Patience) and c.restore_best]
        return found[0] if found else None

    def ends(self, epoch: int) -> int:
        """The step at which `epoch` epochs are done."""
        return max(epoch, round(epoch * len(self.train) / self.recipe.batch))

    def loop(self, until: int, stopped: list[int], verbose: bool) -> None:
        state, total = self.state, self.ends(until)
        if state.step >= total or state.stopped:
            return
        self._check_history()
        saved = time.monotonic()
        batches = self._batches(total)
        with bar("train", total, state.step, verbose and self.workers.chief) as update:
            while state.step < total and not state.stopped:
                start = time.monotonic()
                inputs, targets = next(batches)
                waited = time.monotonic()
                values = np.asarray(self.step(inputs, targets, state.step, bool(stopped)))
                state.step += 1
                self._add(values[:-1], inputs, targets)
                self._count(start, waited)
                leave = bool(values[-1] if self.workers.count > 1 else stopped)
                self._stop_now()
                if state.stopped or state.step == self.ends(len(state.history) + 1):
                    self._end_epoch()
                if leave or state.stopped or state.step == total or time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                update(state.step, figures(state.history))
                if leave and state.step < total and not state.stopped:
                    raise Interrupted(f"stopped at step {state.step} of {total}; the same call continues from there")

    def _batches(self, total: int) -> Iterator[Any]:
        """The training stream from the current step on, at the sizes of the recipe."""
        recipe, workers, step = self.recipe, self.workers, self.state.step
        for end, preprocess in _sizes.parts(recipe, self.preprocess, self.ends(self.epochs)):
            end = min(end, total)
            if step >= end:
                continue
            stream = train_pipeline(
                self.train, preprocess, recipe.augment, recipe.batch, recipe.seed, start_step=step,
                worker=workers.index, workers=workers.count,
            )  # fmt: skip
            for batch in stream.take(end - step):
                yield workers.split(batch)
            step = end

    def _add(self, values: Any, inputs: Any, targets: Any) -> None:
        """Adds a step's means to the epoch's sums; refuses a loss that is not finite."""
        state, loss = self.state, float(values[0])
        if not math.isfinite(loss):
            where = f": {_diagnose.first_bad(self.model, inputs, targets)}" if self.workers.replicas == 1 else ""
            held = (
                f"the last good checkpoint is in {self.checkpoints}"
                if self.checkpoints.is_dir()
                else "none is saved yet"
            )
            raise DivergedError(
                f"the loss is {loss} at step {state.step} of {self.ends(self.epochs)}{where}; {held}. A smaller "
                f"peak_lr (now {self.recipe.peak_lr}), a longer warm-up or clip_norm often helps"
            )
        sums = state.sums or [0.0] * len(values)
        state.sums = [a + float(b) for a, b in zip(sums, values, strict=True)]
        state.steps += 1

    def _count(self, start: float, waited: float) -> None:
        self.state.waiting += waited - start
        self.state.epoch_seconds += time.monotonic() - start
        self.state.seconds += time.monotonic() - start

    def _stop_now(self) -> None:
        """Ends the run within an epoch where its time is used up."""
        for criterion in self.recipe.stop:
            if isinstance(criterion, stopping.TimeBudget) and self.workers.count == 1 and not self.state.stopped:
                self.state.stopped = criterion.reason(self.state.history, self.state.seconds)

    def _end_epoch(self) -> None:
        state, began = self.state, time.monotonic()
        row: dict[str, float] = {"epoch": len(state.history) + 1, "step": state.step}
        row |= {name: total / state.steps for name, total in zip(self.step.columns, state.sums, strict=True)}
        with self._swapped():
            if self.validation is not None:
                found = self._validated()
                row |= {f"val_{name}": value for name, value in found.items()}
            row["learning_rate"] = float(self.schedule(state.step - 1))
            row["seconds"], row["waiting"] = round(state.epoch_seconds, 4), round(state.waiting, 4)
            state.history.append(row)
            if self._is_best() and self.workers.chief:
                resume.save(self.best, state.step, self.model.variables, {}, keep=1)
        self._log(row)
        self._rescale()
        state.seconds += time.monotonic() - began
        state.epoch_seconds = state.waiting = 0.0
        state.sums, state.steps = [], 0
        reasons = [c.reason(state.history, self.workers.agreed(state.seconds)) for c in self.recipe.stop]
        if state.step < self.ends(self.epochs):
            state.stopped = state.stopped or next(filter(None, reasons), "")

    def _validated(self) -> dict[str, float]:
        """Measures the model on the validation source, in float32 as exports compute: what is measured is served."""
        with precision.arithmetic("float32"):
            return _evaluate.measure(self.predict, self.model, self.validation, self.preprocess)

    def _rescale(self) -> None:
        """Sets the rate that the schedule is a multiple of: what a plateau has left of the recipe's."""
        if self.recipe.plateau is not None:
            self.schedule.scale.assign(self.recipe.peak_lr * self.recipe.plateau.scale(self.state.history))

    def _is_best(self) -> bool:
        history, patience = self.state.history, self.patience
        return patience is not None and stopping.best_row(history, patience.metric) == len(history) - 1

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        """Holds what is validated and saved in the model inside the block: the average, where one is kept."""
        with self.averaging.swapped():
            self._recalibrate(self.training_pass)
            yield

    def _recalibrate(self, forward: Any = None) -> None:
        if self.averaging.needs_statistics:
            whole = max(1, min(20, len(self.train) // self.recipe.batch))  # batches of one size, as in training
            with precision.arithmetic("float32"):  # as what is saved computes
                averaging.recalibrate(self.model, self._plain_inputs(whole * self.recipe.batch), forward)

    def _plain_inputs(self, items: int) -> Iterator[Any]:
        """Items of the training source as validation would see them, in batches of the recipe's size.

        They are drawn with the recipe's seed: a folder's first items are all of one class.
        """
        order = np.random.default_rng(self.recipe.seed).permutation(len(self.train))
        part = self.train.subset(order[:items])
        for inputs, _ in eval_pipeline(part, self.preprocess, self.recipe.batch):
            yield inputs

    def _check_columns(self) -> None:
        found = tasks.columns(self.recipe.task, len(self.train.classes or ()))
        columns = ["loss", *tasks.batch_metrics(self.recipe.task), *self.measures]
        columns += [f"val_{name}" for name in found] if self.validation is not None else []
        stopping.check_columns([*self.recipe.stop, self.recipe.plateau], columns)

    def _check_history(self) -> None:
        """Refuses to go on without the validation that earlier epochs had, or with one that they had not."""
        had = any(name.startswith("val_") for row in self.state.history for name in row)
        if self.state.history and had != (self.validation is not None):
            raise InputError(
                f"the run in {self.run_dir} was trained {'with' if had else 'without'} a validation source so far; "
                f"{'give it again' if had else 'leave it out'}, or choose another run_dir"
            )

    def _log(self, row: dict[str, float]) -> None:
        with self.events.as_default(step=self.state.step):
            for name, value in row.items():
                tf.summary.scalar(name, value)

    def save(self) -> None:
        if self.workers.chief:
            resume.save(self.checkpoints, self.state.step, self.variables, dataclasses.asdict(self.state))
            _run_dir.write_history(self.run_dir, self.state.history)
            self.events.flush()

    def settle(self) -> dict[str, float]:
        """Leaves the final weights in the model and returns the row of the history that was measured on them."""
        history = self.state.history
        if self.patience and history:
            self.workers.agreed(0.0)  # the chief has written them
            if resume.restore(self.best, self.model.variables) is None:
                raise InputError(f"{self.best} is gone, and with it the best epoch's weights; choose another run_dir")
            return history[stopping.best_row(history, self.patience.metric)]
        self.averaging.finalize()
        self._recalibrate()
        return history[-1] if history else {}

    def finish(self, row: dict[str, float]) -> Result:
        """Saves the model and says what the history knows of it."""
        state = self.state
        metrics = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
        if not metrics and self.validation is not None:
            metrics = self._validated()
        best = stopping.best_of(state.history)
        result = Result(tuple(state.history), metrics, best, state.seconds, self.run_dir, state.stopped)
        if self.workers.chief:
            _run_dir.save_model(self.run_dir, self.model)
            summary = {"step": state.step, "seconds": state.seconds, "stopped": state.stopped, "best": best}
            write_json(self.run_dir / "summary.json", summary | {"final": row})
        return result
