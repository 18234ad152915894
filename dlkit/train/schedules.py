"""Learning rates as functions of the step: the lectures' schedules, and warm-up around any of them.

Each is a `keras.optimizers.schedules.LearningRateSchedule`, so it works in any Keras optimizer and saves with it.
`t` is the optimizer's step counter, `T` the step at which the schedule ends; after `T` the last value holds.

Reference: lecture "Training of neural networks" (M. Hushchyn, HSE 2025), "Learning Rate Scheduler", "Warmup".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule as Schedule

from dlkit._errors import InputError, unknown

_register = keras.saving.register_keras_serializable(package="dlkit")


def _positive(name: str, value: float, zero: bool = False) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} must be {'at least 0' if zero else 'above 0'} and finite, got {value!r}")
    return value


class _Formula(Schedule):
    """Keeps the constructor's arguments as the config and evaluates `formula` in float32."""

    def __init__(self, **config: Any):
        super().__init__()
        self._config = config

    def get_config(self) -> dict[str, Any]:
        return dict(self._config)

    def __call__(self, step: Any) -> Any:
        return self.formula(ops.cast(step, "float32"))

    def formula(self, t: Any) -> Any:
        raise NotImplementedError


@_register
class Constant(_Formula):
    """Keeps one rate.

        eta_t = peak

    >>> float(Constant(0.1)(7))  # doctest: +ELLIPSIS
    0.1000...
    """

    def __init__(self, peak: float):
        super().__init__(peak=_positive("peak", peak))

    def formula(self, t: Any) -> Any:
        return self._config["peak"] + 0.0 * t


@_register
class Factor(_Formula):
    """Multiplies the rate by `alpha` every `every` steps, down to `floor`.

        eta_t = max(floor, peak * alpha ** floor(t / every))

    The lecture's factor scheduler eta_{t+1} = eta_t * alpha, counted in periods instead of single steps.

    >>> [round(float(Factor(1.0, alpha=0.5, every=10)(t)), 3) for t in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, peak: float, alpha: float = 0.1, every: int = 1, floor: float = 0.0):
        _fraction("alpha", alpha)
        super().__init__(
            peak=_positive("peak", peak), alpha=alpha, every=_positive("every", every),
            floor=_positive("floor", floor, zero=True),
        )  # fmt: skip

    def formula(self, t: Any) -> Any:
        c = self._config
        return ops.maximum(c["floor"], c["peak"] * ops.power(c["alpha"], ops.floor(t / c["every"])))


@_register
class Exponential(_Formula):
    """Decays by the same factor at every step.

        eta_t = peak * final ** (t / T),  that is eta_0 * alpha ** t with alpha = final ** (1 / T)

    Args:
        peak: the first rate.
        steps: T, the steps over which it falls.
        final: the share of `peak` that is left at T.

    >>> [round(float(Exponential(1.0, steps=100, final=0.01)(t)), 3) for t in (0, 50, 100)]
    [1.0, 0.1, 0.01]
    """

    def __init__(self, peak: float, steps: int, final: float = 0.01):
        _fraction("final", final)
        super().__init__(peak=_positive("peak", peak), steps=_positive("steps", steps), final=final)

    def formula(self, t: Any) -> Any:
        c = self._config
        return c["peak"] * ops.power(c["final"], ops.minimum(t / c["steps"], 1.0))


@_register
class Polynomial(_Formula):
    """Decays as a power of the step, slowly and without end.

        eta_t = peak / (1 + alpha * t) ** beta

    >>> [round(float(Polynomial(1.0, alpha=0.01, beta=0.5)(t)), 3) for t in (0, 300, 9900)]
    [1.0, 0.5, 0.1]
    """

    def __init__(self, peak: float, alpha: float = 0.01, beta: float = 0.5):
        super().__init__(peak=_positive("peak", peak), alpha=_positive("alpha", alpha), beta=_positive("beta", beta))

    def formula(self, t: Any) -> Any:
        c = self._config
        return c["peak"] / ops.power(1.0 + c["alpha"] * t, c["beta"])


@_register
class Cosine(_Formula):
    """Falls along half a cosine from `peak` to `final`.

        eta_t = final + (peak - final) / 2 * (1 + cos(pi * t / T))

    >>> [round(float(Cosine(1.0, steps=100)(t)), 3) for t in (0, 50, 100, 200)]
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, peak: float, steps: int, final: float = 0.0):
        super().__init__(
            peak=_positive("peak", peak), steps=_positive("steps", steps), final=_positive("final", final, zero=True)
        )

    def formula(self, t: Any) -> Any:
        c = self._config
        turn = math.pi * ops.minimum(t / c["steps"], 1.0)
        return c["final"] + 0.5 * (c["peak"] - c["final"]) * (1.0 + ops.cos(turn))


@_register
class Linear(_Formula):
    """Falls in a straight line from `peak` to `final`; to zero by default.

        eta_t = peak + (final - peak) * min(t / T, 1)

    >>> [round(float(Linear(1.0, steps=100)(t)), 3) for t in (0, 25, 100, 200)]
    [1.0, 0.75, 0.0, 0.0]
    """

    def __init__(self, peak: float, steps: int, final: float = 0.0):
        super().__init__(
            peak=_positive("peak", peak), steps=_positive("steps", steps), final=_positive("final", final, zero=True)
        )

    def formula(self, t: Any) -> Any:
        c = self._config
        return c["peak"] + (c["final"] - c["peak"]) * ops.minimum(t / c["steps"], 1.0)


@_register
class OneCycle(_Formula):
    """Rises along half a cosine to `peak` in the first `rise` of the steps and falls along another to `peak * final`.

        eta_t = peak * (start + (1 - start) * (1 - cos(pi * u)) / 2),  u = t / (rise * T)              while u < 1
        eta_t = peak * (final + (1 - final) * (1 + cos(pi * v)) / 2),  v = (t / T - rise) / (1 - rise) after it

    Reference: Smith and Topin, 2018, "Super-Convergence", https://arxiv.org/abs/1708.07120

    >>> [round(float(OneCycle(1.0, steps=100, rise=0.25, start=0.1)(t)), 3) for t in (0, 25, 100)]
    [0.1, 1.0, 0.0]
    """

    def __init__(self, peak: float, steps: int, rise: float = 0.3, start: float = 0.04, final: float = 1e-4):
        for name, value in (("rise", rise), ("start", start), ("final", final)):
            _fraction(name, value)
        super().__init__(
            peak=_positive("peak", peak), steps=_positive("steps", steps), rise=rise, start=start, final=final
        )

    def formula(self, t: Any) -> Any:
        c = self._config
        part = ops.minimum(t / c["steps"], 1.0)
        up = 0.5 * (1.0 - ops.cos(math.pi * part / c["rise"]))
        down = 0.5 * (1.0 + ops.cos(math.pi * (part - c["rise"]) / (1.0 - c["rise"])))
        rising = c["start"] + (1.0 - c["start"]) * up
        falling = c["final"] + (1.0 - c["final"]) * down
        return c["peak"] * ops.where(part < c["rise"], rising, falling)


@_register
class Piecewise(_Formula):
    """Divides the rate at given steps, as the ResNet paper does on a plateau.

        eta_t = peak * alpha ** (number of boundaries <= t)

    >>> [round(float(Piecewise(0.1, boundaries=(10, 20))(t)), 4) for t in (9, 10, 20)]
    [0.1, 0.01, 0.001]
    """

    def __init__(self, peak: float, boundaries: Sequence[int], alpha: float = 0.1):
        boundaries = tuple(boundaries)
        if list(boundaries) != sorted(boundaries):
            raise InputError(f"boundaries must rise, got {boundaries}")
        _fraction("alpha", alpha)
        super().__init__(peak=_positive("peak", peak), boundaries=boundaries, alpha=alpha)

    def formula(self, t: Any) -> Any:
        c = self._config
        passed = sum((ops.cast(t >= float(b), "float32") for b in c["boundaries"]), 0.0 * t)
        return c["peak"] * ops.power(c["alpha"], passed)


@_register
class WarmUp(Schedule):
    """Raises the rate in a straight line over the first `steps`, then runs `schedule` from its own step 0.

        eta_t = schedule(0) * (t + 1) / (W + 1)  for t < W,   schedule(t - W) after it

    The first step is not zero, so no step is wasted.

    Args:
        schedule: any `LearningRateSchedule`.
        steps: W, the length of the rise; 0 leaves `schedule` as it is.

    >>> [round(float(WarmUp(Constant(1.0), steps=4)(t)), 2) for t in (0, 1, 3, 4)]
    [0.2, 0.4, 0.8, 1.0]

    Reference: Goyal et al., 2017, section 2.2, https://arxiv.org/abs/1706.02677; lecture "Training", "Warmup".
    """

    def __init__(self, schedule: Schedule, steps: int):
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise InputError(
                f"schedule must be a LearningRateSchedule, got {schedule!r}; for a plain number: Constant({schedule!r})"
            )
        self.schedule = schedule
        self.steps = _positive("steps", steps, zero=True)

    def __call__(self, step: Any) -> Any:
        t = ops.cast(step, "float32")
        rise = (t + 1.0) / (self.steps + 1.0)
        after = self.schedule(ops.maximum(t - self.steps, 0.0))
        return ops.where(t < self.steps, self.schedule(0.0) * rise, after)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


@_register
class Scaled(Schedule):
    """Multiplies any schedule by a number that can change during the run; what `Plateau` turns down.

        eta_t = scale * schedule(t)

    Keras' ReduceLROnPlateau raises a TypeError on an optimizer with a schedule; here the scale is a variable.

    Args:
        schedule: any `LearningRateSchedule`.
        scale: the number to start with.

    Attributes:
        scale: the variable; assign to it. It belongs into a checkpoint.

    >>> schedule = Scaled(Constant(0.5))
    >>> _ = schedule.scale.assign(0.1)
    >>> round(float(schedule(3)), 3)
    0.05
    """

    def __init__(self, schedule: Schedule, scale: float = 1.0):
        super().__init__()
        self.schedule = schedule
        self.scale = keras.Variable(_positive("scale", scale, zero=True), trainable=False, name="scale")

    def __call__(self, step: Any) -> Any:
        return self.schedule(step) * ops.convert_to_tensor(self.scale)

    def get_config(self) -> dict[str, Any]:
        scale = float(ops.convert_to_numpy(self.scale))
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "scale": scale}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Scaled":
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["scale"])


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must lie between 0 and 1, got {value!r}")


# name -> schedule over `steps` steps; what `Recipe.schedule` may be
SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda peak, steps: Constant(peak),
    "factor": lambda peak, steps: Factor(peak, alpha=0.5, every=max(1, steps // 10)),
    "exponential": lambda peak, steps: Exponential(peak, steps),
    "polynomial": lambda peak, steps: Polynomial(peak, alpha=99 / steps),
    "cosine": lambda peak, steps: Cosine(peak, steps),
    "linear": lambda peak, steps: Linear(peak, steps),
    "one_cycle": lambda peak, steps: OneCycle(peak, steps),
    "piecewise": lambda peak, steps: Piecewise(peak, (steps // 2, steps * 3 // 4)),
}


def get(name: str, peak: float, steps: int, warmup_steps: int = 0) -> Schedule:
    """Builds the named schedule over `steps` steps in all, the first `warmup_steps` of them a linear rise.

    Args:
        name: one of `SCHEDULES`. "factor" halves ten times, "polynomial" ends at a tenth of the peak, "piecewise"
            divides by ten at 1/2 and 3/4 of the steps as the ResNet paper does on CIFAR-10.
        peak: the highest rate.
        steps: all steps of the run, warm-up included.
        warmup_steps: steps of the rise, fewer than `steps`.

    Raises:
        InputError: an unknown name, with the nearest one; a warm-up that does not fit.

    >>> schedule = get("cosine", peak=0.1, steps=100, warmup_steps=10)
    >>> round(float(schedule(10)), 3), round(float(schedule(100)), 3)
    (0.1, 0.0)
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    if not 0 <= warmup_steps < steps:
        raise InputError(f"a warm-up of {warmup_steps} steps does not fit into a run of {steps} steps")
    schedule = SCHEDULES[name](peak, steps - warmup_steps)
    return WarmUp(schedule, warmup_steps) if warmup_steps else schedule
