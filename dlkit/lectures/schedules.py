"""Learning rates over time, warm-up, the size of the batch, and when to stop.

Papers: Robbins, Monro 1951 (stochastic descent); Goyal et al. 2017 (warm-up); Loshchilov, Hutter 2016 (cosine).
"""

from typing import Any

import keras
import numpy as np

from dlkit.data import Preprocess, load
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import mlp
from dlkit.train import DivergedError, Recipe, schedules, stopping

TITLE = "Schedules, warm-up, batches and stopping"
RUSSIAN = "Выбор шага; прогрев обучения; критерии остановки; стохастический градиентный спуск"
WHERE = "Lecture 003 (M. Gushchin), «Выбор шага (Learning Rate Scheduler)» to «Эпохи и итерации»"
FORMULA = """constant     eta_t = eta_0                       factor      eta_t+1 = alpha eta_t
exponential  eta_t = eta_0 alpha^t               polynomial  eta_t = eta_0 / (1 + alpha t)^beta
cosine       eta_t = eta_T + (eta_0 - eta_T) / 2 (1 + cos(pi t / T))
warm-up      eta rises from 0 to eta_0 in the first epochs
stop         |grad L| near 0,  |w_k+1 - w_k| near 0,  L no longer falls"""
PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)
LINEAR: dict[str, Any] = {"schedule": "constant", "warmup_epochs": 0, "weight_decay": 0.0, "optimizer": "sgd"}


def curves(lab: Lab) -> None:
    t, steps = np.arange(100.0), 100
    formulas = {
        "constant": (schedules.Constant(0.1), 0.1 + 0 * t),
        "factor": (schedules.Factor(0.1, alpha=0.9), 0.1 * 0.9**t),
        "exponential": (schedules.Exponential(0.1, steps, final=0.01), 0.1 * (0.01 ** (1 / steps)) ** t),
        "polynomial": (schedules.Polynomial(0.1, alpha=0.1, beta=0.5), 0.1 / (1 + 0.1 * t) ** 0.5),
        "cosine": (schedules.Cosine(0.1, steps, final=0.01), 0.01 + 0.09 / 2 * (1 + np.cos(np.pi * t / steps))),
    }
    worst = max(np.abs(np.asarray(schedule(t)) / formula - 1).max() for schedule, formula in formulas.values())
    lab.fact("the five formulas", f"largest relative difference from dlkit's schedules {worst:.0e}", worst < 1e-4)
    with lab.figure("schedules", "Every schedule of `Recipe.schedule`, without and with warm-up.", 1, 2) as axes:
        for panel, rise in zip(axes.flat, (0, 20), strict=True):
            for name, colour in zip(schedules.SCHEDULES, COLOURS, strict=True):
                panel.plot(t, schedules.get(name, 0.1, steps, rise)(t), label=name, color=colour)
            panel.set(xlabel="step", ylabel="learning rate", title=f"warm-up of {rise} steps")
        axes[0, 0].legend(fontsize=7)


def warm_up(lab: Lab) -> None:
    """Eight layers without a norm, at rates where descent is at its limit; and a small rate for comparison."""
    train, test = load("digits")
    rates, rise = lab.pick((0.2,), (0.05, 0.1, 0.2)), lab.pick(1, 3)
    found: dict[tuple[float, float], list[float]] = {}
    for rate, epochs in [(rate, epochs) for rate in rates for epochs in (0, rise)] + [(0.002, 0)]:
        for seed in lab.seeds():
            keras.utils.set_random_seed(seed)
            recipe = Recipe(epochs=lab.pick(2, 15), batch=64, optimizer="momentum", peak_lr=rate,
                            warmup_epochs=epochs, weight_decay=0.0, seed=seed)  # fmt: skip
            try:
                result = lab.train(mlp((64,) * 8, input_shape=(8, 8, 1)), recipe, train, test, PREPROCESS)
                found.setdefault((rate, epochs), []).append(100 * result.metrics["accuracy"])
            except DivergedError:
                found.setdefault((rate, epochs), []).append(10.0)  # weights that are not finite can only guess
    rows = [[rate, epochs, spread(values, " %")] for (rate, epochs), values in found.items()]
    lab.table("Test accuracy on the digits, eight layers", ["learning rate", "epochs of warm-up", "accuracy"], rows)
    cold, warm = ([value for rate in rates for value in found[rate, epochs]] for epochs in (0, rise))
    good = [sum(value > 90 for value in values) for values in (cold, warm)]
    measured = f"runs above 90 %: {good[0]} of {len(cold)} without, {good[1]} of {len(warm)} with warm-up"
    lab.effect("warm-up keeps a large step from unstable solutions", measured, good[1] > good[0])


def batches(lab: Lab) -> None:
    train, test = load("digits")
    hundred, steps = train.subset(range(100)), {}
    for size in (100, 10, 1):
        recipe = Recipe(epochs=1, batch=size, peak_lr=0.01, **LINEAR)
        steps[size] = lab.train(mlp((), input_shape=(8, 8, 1)), recipe, hundred, None, PREPROCESS).history[-1]["step"]
    measured = ", ".join(f"{n} of batch {size}" for size, n in steps.items())
    lab.fact("an epoch of 100 objects is 1, 10 or 100 iterations", measured, list(steps.values()) == [1, 10, 100])
    kinds = {"full": (len(train), 0.5, lab.pick(3, 200)), "mini-batch": (64, 0.1, lab.pick(1, 10)),
             "stochastic": (1, 0.01, lab.pick(0, 3))}  # fmt: skip
    need: dict[str, list[tuple[float, float]]] = {}
    with lab.figure("batches", "The same network by full, mini-batch and stochastic descent.", 1, 2) as axes:
        for (kind, (size, rate, epochs)), colour in zip(kinds.items(), COLOURS, strict=False):
            for seed in lab.seeds() if epochs else ():
                keras.utils.set_random_seed(seed)
                recipe = Recipe(epochs=epochs, batch=size, peak_lr=rate, seed=seed, **LINEAR)
                rows = lab.train(mlp((32,), input_shape=(8, 8, 1)), recipe, train, test, PREPROCESS).history
                first = next((row for row in rows if row["val_accuracy"] >= 0.9), rows[-1])
                need.setdefault(kind, []).append((first["step"], first["step"] * size))
                for panel, unit in zip(axes.flat, (1, size), strict=True):
                    at = [row["step"] * unit for row in rows]
                    panel.plot(at, [row["val_loss"] for row in rows], color=colour, label="" if seed else kind)
        for panel, label in zip(axes.flat, ("steps", "pictures seen"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel="test loss")
        axes[0, 0].legend()
    iterations, cost = ({kind: [pair[i] for pair in need[kind]] for kind in need} for i in (0, 1))
    measured = "steps until 90 % of the test digits are right: "
    measured += ", ".join(f"{kind} {spread(values, digits=0)}" for kind, values in iterations.items())
    ordered = [np.mean(values) for values in iterations.values()]
    lab.effect("full descent needs fewer iterations", measured, ordered == sorted(ordered))
    measured = "pictures seen until then: "
    measured += ", ".join(f"{kind} {spread(values, digits=0)}" for kind, values in cost.items())
    ordered = [np.mean(values) for values in cost.values()]
    lab.effect("full descent needs more computation", measured, ordered[0] > max(ordered[1:]))


def stops(lab: Lab) -> None:
    train, test = load("digits")
    found, limit = {}, lab.pick(4, 300)
    criteria = None, stopping.GradientNorm(0.1), stopping.WeightChange(2e-3), stopping.LossStalled(5, min_delta=1e-3)
    for criterion in criteria:
        keras.utils.set_random_seed(0)
        recipe = Recipe(epochs=limit, batch=len(train), peak_lr=0.5, stop=(criterion,) if criterion else (), **LINEAR)
        found[criterion] = lab.train(mlp((), input_shape=(8, 8, 1)), recipe, train, test, PREPROCESS)
    full = found.pop(None).metrics["accuracy"]
    rows = [[result.stopped or "not reached", len(result.history), f"{100 * result.metrics['accuracy']:.1f} %"]
            for result in found.values()]  # fmt: skip
    lab.table(f"The three criteria on full descent of at most {limit} epochs; without: {100 * full:.1f} % of the test "
              "digits", ["reason", "epoch", "test accuracy"], rows)  # fmt: skip
    worst = full - min(result.metrics["accuracy"] for result in found.values())
    measured = f"epochs {[row[1] for row in rows]} of {limit}; largest loss of test accuracy {100 * worst:.1f} %"
    lab.effect(
        "three criteria end descent near the minimum", measured, all(r.stopped for r in found.values()) and worst < 0.02
    )


def experiment(lab: Lab) -> None:
    curves(lab)
    warm_up(lab)
    batches(lab)
    stops(lab)
