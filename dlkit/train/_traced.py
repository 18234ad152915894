"""What a run compiles and traces. In a search the model keeps it, and its next run takes it over."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dlkit.train import _evaluate, averaging, optimizers, precision, schedules, tasks
from dlkit.train._step import Step, numbers
from dlkit.train.losses import CrossEntropy
from dlkit.train.recipe import Recipe

_NAME = "_dlkit_traced"  # in the model's __dict__, past Keras' tracking of attributes
_keeping: ContextVar[bool] = ContextVar("keeping", default=False)
# fields of a recipe that no trace holds: inputs of the step, what other fields become, and what the loop does
_FREE = (
    "peak_lr", "epochs", "batch", "warmup_epochs", "augment", "seed", "stop", "plateau", "sizes", "freeze", "whiten",
)  # fmt: skip


@dataclass
class Traced:
    """The parts of a run that hold traced functions or are held by them."""

    key: Any
    schedule: schedules.Scaled
    optimizer: Any
    loss: Any
    averaging: averaging.Averaging
    step: Step
    predict: Callable[[Any], Any]
    training_pass: Callable[[Any], Any]


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Lets runs inside the block leave their traced functions with the model and take over those of the run before.

    For callers who know that nothing else changed the model in between: an attribute of a layer that its configuration
    does not show is fixed in a trace all the same.
    """
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def prepared(
    model: Any, recipe: Recipe, total: int, warmup: int, measures: tuple[str, ...], workers: Any, deterministic: bool
) -> Traced:
    """Returns the parts for a run of `total` steps from the present weights, with a fresh optimizer and average.

    A search trains one network many times at other rates: `keeping` takes over the traced functions of the last run if
    the model and the recipe are the same but for `peak_lr`, `label_smoothing`, `weight_decay`, `l1`, `l2` and
    `clip_norm` (of the last four a 0 stays a 0 and no other number becomes one) and what concerns the data only. The
    numbers are inputs of the traces, so a run gives the same bits with and without.
    """
    loss = tasks.loss(recipe.task, model, recipe.label_smoothing, recipe.loss)
    schedule = schedules.Scaled(schedules.get(recipe.schedule, 1.0, total, warmup), recipe.peak_lr)
    optimizer = optimizers.of(recipe, schedule, model.trainable_variables)
    average = averaging.get(recipe, model, total)
    inputs = numbers(recipe, loss, optimizer)
    key = _key(model, recipe, inputs, total, warmup, measures, workers, deterministic) if _keeping.get() else None
    kept: Traced | None = model.__dict__.get(_NAME)
    compiled: Any = getattr(model, "optimizer", None)  # another compile makes another optimizer
    if kept is not None and key and kept.key == key and compiled is kept.optimizer:
        kept.schedule.scale.assign(recipe.peak_lr)
        fresh = [*optimizer.variables, *average.variables]
        for variable, start in zip([*kept.optimizer.variables, *kept.averaging.variables], fresh, strict=True):
            variable.assign(start)
        kept.optimizer.weight_decay = optimizer.weight_decay
        if isinstance(kept.loss, CrossEntropy):
            kept.loss.label_smoothing = recipe.label_smoothing
        kept.step.take(inputs)
        model.train_function = model.test_function = None  # Keras' own hold the numbers of the run before
        return kept
    # XLA is slower for convolutions on CPU; the metrics serve Keras' own evaluate, the loop has its own
    model.compile(optimizer=optimizer, loss=loss, metrics=tasks.metrics(recipe.task), jit_compile=False)
    step = Step(model, optimizer, recipe, loss, average, measures, workers.strategy)
    predict = _evaluate.replicated(model) if workers.replicas > 1 else _evaluate.predictor(model)
    made = Traced(key, schedule, optimizer, loss, average, step, predict, averaging.training_pass(model))
    if key:
        model.__dict__[_NAME] = made
    return made


def _key(
    model: Any, recipe: Recipe, inputs: dict[str, float], total: int, warmup: int, measures: tuple[str, ...],
    workers: Any, deterministic: bool,
) -> Any:  # fmt: skip
    """Returns all that is fixed in the traces; None where the model cannot say what it is."""
    try:
        network = model.get_config()
    except NotImplementedError:
        return None
    fields = {name: value for name, value in recipe.to_dict().items() if name not in (*_FREE, *inputs)}
    fields["precision"] = precision.of(recipe)
    trainable = [variable.trainable for variable in model.variables]
    return network, fields, sorted(inputs), trainable, total, warmup, measures, workers.replicas, deterministic
