"""Oracles on the LCBench surrogate of YAHPO Gym: epochs spent until the same mean regret.

    python benchmarks/search.py --data FOLDER [--tasks dev|ID,ID] [--seeds 5] [--noise POINTS]

FOLDER holds YAHPO Gym's `lcbench` (model.onnx, encoding.json; Apache-2.0, https://github.com/slds-lmu/yahpo_data).
A configuration has seven hyperparameters; the surrogate gives its balanced validation accuracy (percent) after 1 to 52
epochs. Regret is the best of 20,000 random configurations at 52 epochs minus the best accuracy of the trials so far. A
continued trial pays only for the epochs it adds. The surrogate has no noise: `--noise` adds a normal error of so many
points to each accuracy that an oracle is told; the regret is that of the true ones. Every oracle but the plain BOHB is
driven through KerasTuner.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import keras_tuner
import numpy as np
import onnxruntime
from keras_tuner import oracles as kt

from dlkit.tune import Asha, Bohb

DEV = (
    3945, 7593, 34539, 126025, 126026, 126029, 146212, 167104, 167149, 167152, 167161, 167168, 167181, 167184, 167185,
    167190, 167200, 167201,
)  # fmt: skip
EPOCHS, FULL = 52, 40
BUDGET = EPOCHS * FULL
BOUNDS = {  # name: lower, upper, logarithmic, whole; in the order of the surrogate's input after the epoch
    "batch_size": (16, 512, True, True),
    "learning_rate": (1e-4, 1e-1, True, False),
    "momentum": (0.1, 0.99, False, False),
    "weight_decay": (1e-5, 1e-1, False, False),
    "num_layers": (1, 5, False, True),
    "max_units": (64, 1024, True, True),
    "max_dropout": (0.0, 1.0, False, False),
}


class Surrogate:
    """Accuracy in percent of a configuration on one task after some epochs."""

    def __init__(self, folder: Path, task: int, noise: float = 0.0):
        self.noise, self.random = noise, np.random.default_rng(task)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.code = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][str(task)]
        random = np.random.default_rng(task)
        sample = [decode(row) for row in random.uniform(size=(20_000, len(BOUNDS)))]
        self.best = float(self.many(sample, EPOCHS).max())

    def many(self, configurations, epochs):
        x = np.array([[epochs, *(c[name] for name in BOUNDS)] for c in configurations], np.float32)
        codes = np.full((len(x), 1), self.code, np.int32)
        return self.session.run(None, {"x_cat": codes, "x_cont": x})[0][:, 1]

    def __call__(self, configuration, epochs):
        return float(self.many([configuration], epochs)[0])

    def told(self, accuracy):
        """The accuracy as an oracle learns it."""
        return accuracy + self.noise * float(self.random.standard_normal())


def decode(places):
    """A point of the unit cube as a configuration."""
    found = {}
    for (name, (low, high, log, whole)), place in zip(BOUNDS.items(), places, strict=True):
        value = low * (high / low) ** place if log else low + (high - low) * place
        found[name] = round(value) if whole else float(value)
    return found


def space(hp):
    for name, (low, high, log, whole) in BOUNDS.items():
        sampling = "log" if log else "linear"
        (hp.Int if whole else hp.Float)(name, low, high, sampling=sampling)


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Asks an oracle until the epochs are spent, and keeps (epochs spent, accuracy) of every trial."""

    def __init__(self, oracle, surrogate, folder):
        self.surrogate, self.spent, self.trace, self.thinking = surrogate, 0, [], []
        super().__init__(oracle, space, directory=folder, project_name="p")

    def pre_create_trial(self):
        if self.spent >= BUDGET:
            self.oracle.max_trials = len(self.oracle.trials)
        self.started = time.perf_counter()

    def run_trial(self, trial, **_):
        self.thinking.append(time.perf_counter() - self.started)
        values = trial.hyperparameters.values
        epochs = values.get("tuner/epochs", EPOCHS)
        score = self.surrogate(values, epochs)
        self.spent += epochs - values.get("tuner/initial_epoch", 0)
        self.trace.append((self.spent, score))
        return {"accuracy": self.surrogate.told(score)}


def through_keras_tuner(make):
    def run(surrogate, seed):
        with tempfile.TemporaryDirectory() as folder:
            tuner = Tuner(make(keras_tuner.Objective("accuracy", "max"), seed + 1), surrogate, folder)
            tuner.search(verbose=0)
        return tuner.trace, tuner.thinking

    return run


def plain_bohb(surrogate, seed):
    """BOHB as published: Hyperband brackets with eta 3, two kernel densities on the largest rung with enough points."""
    random, spent, trace, seen = np.random.default_rng(seed), 0, [], {}
    dimensions = len(BOUNDS)

    def suggest():
        rungs = [r for r in sorted(seen, reverse=True) if len(seen[r]) >= dimensions + 2]
        if not rungs or random.uniform() < 1 / 3:
            return random.uniform(size=dimensions)
        ranked = sorted(seen[rungs[0]], key=lambda pair: -pair[1])
        cut = max(dimensions + 1, int(0.15 * len(ranked)))
        good, bad = (np.array([p for p, _ in part]) for part in (ranked[:cut], ranked[-max(cut, len(ranked) - cut) :]))
        widths = [np.maximum(1e-3, 1.06 * part.std(0) * len(part) ** (-1 / (4 + dimensions))) for part in (good, bad)]

        def density(x, part, width):
            return np.exp(-0.5 * (((x - part) / width) ** 2).sum(1)).mean() / width.prod()

        draws = []
        for _ in range(64):
            centre = good[random.integers(len(good))]
            draws.append(np.clip(centre + 3 * widths[0] * random.standard_normal(dimensions), 0, 1))
        return max(draws, key=lambda x: density(x, good, widths[0]) / max(density(x, bad, widths[1]), 1e-32))

    while True:
        for bracket in (3, 2, 1, 0):
            count = int(np.ceil(4 / (bracket + 1) * 3**bracket))
            points, before = [suggest() for _ in range(count)], 0
            for rung in range(bracket + 1):
                epochs = max(1, round(EPOCHS / 3 ** (bracket - rung)))
                scored = []
                for point in points:
                    score = surrogate(decode(point), epochs)
                    spent += epochs - before
                    trace.append((spent, score))
                    scored.append((point, surrogate.told(score)))
                    seen.setdefault(epochs, []).append(scored[-1])
                    if spent >= BUDGET:
                        return trace, []
                before = epochs
                points = [p for p, _ in sorted(scored, key=lambda pair: -pair[1])[: max(1, len(points) // 3)]]


METHODS = {
    "random": through_keras_tuner(lambda o, seed: kt.RandomSearchOracle(objective=o, max_trials=10**6, seed=seed)),
    "keras_tuner.Hyperband": through_keras_tuner(
        lambda o, seed: kt.HyperbandOracle(objective=o, max_epochs=EPOCHS, hyperband_iterations=10, seed=seed)
    ),
    "plain BOHB": plain_bohb,
    "dlkit Asha": through_keras_tuner(lambda o, seed: Asha(o, max_epochs=EPOCHS, seed=seed)),
    "dlkit Bohb": through_keras_tuner(lambda o, seed: Bohb(o, max_epochs=EPOCHS, seed=seed)),
}


def regrets(trace, best):
    """Regret after 1 .. BUDGET epochs."""
    found = np.full(BUDGET + 1, np.nan)
    incumbent = -np.inf
    position = 0
    for spent, score in trace:
        spent = min(spent, BUDGET + 1)
        found[position:spent] = best - incumbent if np.isfinite(incumbent) else best
        incumbent, position = max(incumbent, score), spent
    found[position:] = best - incumbent
    return found[1:]


def speedup(curve, reference):
    """How many times fewer epochs `curve` needs to reach the last value of `reference`."""
    reached = np.flatnonzero(curve <= reference[-1])
    return round(BUDGET / (reached[0] + 1), 2) if len(reached) else None


def suggestion_cost(surrogate, trials=1000):
    """Median milliseconds of KerasTuner's `create_trial` with Bohb over the 50 suggestions after `trials` trials."""
    oracle, took = Bohb(keras_tuner.Objective("accuracy", "max"), max_epochs=EPOCHS, seed=1), []
    hp = keras_tuner.HyperParameters()
    space(hp)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        oracle._set_project_dir(folder, "p")
        oracle.update_space(hp)
        for _ in range(trials + 50):
            started = time.perf_counter()
            trial = oracle.create_trial("tuner")
            took.append(time.perf_counter() - started)
            values = trial.hyperparameters.values
            oracle.update_trial(trial.trial_id, {"accuracy": surrogate(values, values["tuner/epochs"])})
            trial = oracle.get_trial(trial.trial_id)
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
    return round(1e3 * float(np.median(took[trials:])), 2)


def main(data, tasks, seeds, methods, noise):
    curves = {name: [] for name in methods}
    thinking = {name: [] for name in methods}
    for task in tasks:
        surrogate = Surrogate(data, task, noise)
        for seed in range(seeds):
            for name in methods:
                surrogate.random = np.random.default_rng([task, seed])
                trace, thought = METHODS[name](surrogate, seed)
                curves[name].append(regrets(trace, surrogate.best))
                thinking[name] += thought
    means = {name: np.mean(curve, axis=0) for name, curve in curves.items()}
    result = {"tasks": list(tasks), "seeds": seeds, "noise": noise, "budget_epochs": BUDGET, "methods": {}}
    for name, mean in means.items():
        row = {f"regret at {n} full trainings": round(float(mean[n * EPOCHS - 1]), 3) for n in (5, 10, 20, 40)}
        row |= {f"epochs saved against {other}": speedup(mean, means[other]) for other in means if other != name}
        if thinking[name]:
            row["milliseconds per suggestion, median"] = round(1e3 * float(np.median(thinking[name])), 2)
        if "random" in means and name != "random":
            late = slice(5 * EPOCHS - 1, None)
            row["never worse than random from 5 full trainings on"] = bool((mean[late] <= means["random"][late]).all())
        if name == "dlkit Bohb":
            row["milliseconds per suggestion after 1000 trials, median"] = suggestion_cost(surrogate)
        result["methods"][name] = row
        print(name, json.dumps(row, indent=1))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="dev", help="dev, or task ids separated by commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, in points of accuracy")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    chosen = DEV if arguments.tasks == "dev" else tuple(int(task) for task in arguments.tasks.split(","))
    found = main(arguments.data, chosen, arguments.seeds, arguments.methods, arguments.noise)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
