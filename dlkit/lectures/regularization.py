"""Overfitting and its remedies: hold-out, polynomials, L1 and L2, dropout, early stopping.

Lectures: E. Sokolov, Sirius 2025, slides "Generalisation" to "Symptom of overfitting"; St Petersburg University 2025,
"Regularisation"; I. Ivanov, lecture 3, "Dropout". Paper: N. Srivastava et al., "Dropout: a simple way to prevent neural
networks from overfitting", 2014.
"""

from dataclasses import replace

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

from dlkit.data import Preprocess, from_arrays, load
from dlkit.layers import Dropout
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import mlp
from dlkit.train import Recipe, evaluate
from dlkit.train.stopping import Patience

TITLE = "Overfitting and regularisation"
RUSSIAN = "Обобщающая способность, регуляризация, дропаут"
WHERE = 'E. Sokolov, Sirius 2025, "Обобщающая способность"; St Petersburg University 2025; I. Ivanov, lecture 3 of 2025'
FORMULA = """L2: loss + lambda / 2 sum w^2     L1: loss + lambda sum |w|
dropout, E y = p x: in training y = x or 0, in the test y = p x; or in training y = x / p or 0, in the test y = x"""


def dropout(lab):
    """Draws both forms many times: training and inference must have one expectation."""
    x, draws, p = np.linspace(-2, 2, 9, dtype="float32"), 20_000, 0.7
    for scale_at, factor, says in (("test", p, "times p in the test"), ("train", 1, "divided by p in training")):
        layer = Dropout(1 - p, scale_at=scale_at, seed=0)
        trained, tested = (np.asarray(layer(np.tile(x, (draws, 1)), training=mode)) for mode in (True, False))
        off = np.max(np.abs(trained.mean(0) - tested[0]) / (trained.std(0) / np.sqrt(draws) + 1e-6))
        said = f"p = {p}: the mean of {draws:,} draws is within {off:.1f} standard errors of the test's {factor} x"
        same = off < 5 and np.allclose(tested[0], factor * x, atol=1e-6)
        lab.fact(f"dropout, {says}, keeps the expectation", said, same)


def polynomials(lab, panel):
    """Fits degrees 1, 4 and 15 to 30 noisy points of a cosine, and degree 15 with an L2 penalty."""
    fits = {"degree 1": (1, 0.0), "degree 4": (4, 0.0), "degree 15": (15, 0.0), "degree 15, L2": (15, 1e-3)}
    grid = np.linspace(0, 1, 200)
    found: dict = {name: [] for name in fits}
    for seed in range(20):
        random = np.random.default_rng(seed)
        x = random.uniform(0, 1, 30)
        y = np.cos(1.5 * np.pi * x) + random.normal(0, 0.1, 30)
        for (name, (degree, penalty)), colour in zip(fits.items(), COLOURS, strict=False):
            table = np.vstack([np.vander(x, degree + 1), np.sqrt(penalty) * np.eye(degree + 1)])  # L2 as further rows
            w = np.linalg.lstsq(table, np.append(y, np.zeros(degree + 1)), rcond=None)[0]
            at_grid, off = np.polyval(w, grid), np.polyval(w, grid) - np.cos(1.5 * np.pi * grid)
            found[name].append((np.mean((np.polyval(w, x) - y) ** 2), np.mean(off**2), np.abs(w).max()))
            if seed == 19:
                panel.plot(grid, at_grid, color=colour, label=name)
    panel.plot(x, y, "k.", label="data of one draw")
    panel.set(xlabel="x", ylabel="y", ylim=(-1.8, 1.8))
    train, new, largest = np.median(list(found.values()), axis=1).T
    lab.table(
        "Polynomials through 30 points, medians of 20 draws", ["fit", "training MSE", "MSE to the truth", "largest w"],
        [[n, f"{a:.4f}", f"{b:.3g}", f"{c:.3g}"] for n, a, b, c in zip(fits, train, new, largest, strict=True)],
    )  # fmt: skip
    training, truth = (", ".join(f"{value:.2g}" for value in values[:3]) for values in (train, new))
    said = f"degrees 1, 4, 15: MSE in training {training}; to the truth {truth}"
    overfits = train[0] > train[1] > train[2] and new[1] < min(new[0], new[2])
    lab.fact("overfitting: good on the training set, bad on new data", said, overfits)
    said = f"largest coefficient {largest[0]:.2g}, {largest[1]:.2g}, {largest[2]:.2g}; with L2 {largest[3]:.2g}"
    lab.fact("large coefficients are a symptom of overfitting", said, largest[2] > 1000 * max(largest[1], largest[3]))


def hold_out(lab, panel):
    """Measures a linear classifier of digits with hold-out samples of several sizes."""
    x, y = load_digits(return_X_y=True)
    source = from_arrays(x.astype("float32"), y)
    accuracy: dict = {share: [] for share in (0.1, 0.5, 0.7, 0.8, 0.98)}
    for share, values in accuracy.items():
        for seed in range(lab.pick(3, 30)):
            train, test = (part.rows for part in source.split(share, 1 - share, seed=seed))
            values.append(100 * RidgeClassifier().fit(x[train], y[train]).score(x[test], y[test]))
    panel.boxplot(list(accuracy.values()), tick_labels=[f"{100 * s:.0f}" for s in accuracy])
    panel.set(xlabel="share of the data for training, %", ylabel="measured accuracy, %")
    said = {share: f"{100 * share:.0f} %: {spread(values, ' %')}" for share, values in accuracy.items()}
    mean, deviation = ({s: f(v) for s, v in accuracy.items()} for f in (np.mean, np.std))
    says = "too much for the test and the model cannot learn; too much for training and the test is unrepresentative"
    bad = mean[0.1] < mean[0.7] - 1 and deviation[0.98] > 1.5 * deviation[0.7]
    lab.effect(says, f"accuracy by training share: {said[0.1]}, {said[0.7]}, {said[0.98]}", bad)
    same = abs(mean[0.7] - mean[0.8]) < max(deviation[0.7], deviation[0.8])
    lab.effect("usual are 70/30 and 80/20: either serves", f"{said[0.7]}, {said[0.8]}", same)


def networks(lab, panel):
    """Trains a network that is too large for its data with each remedy."""
    train, test = (part.subset(range(100)) for part in load("digits")) if lab.quick else lab.cifar(1000, 2000, size=16)
    preprocess = Preprocess(8, channels=1) if lab.quick else Preprocess(16)
    recipe = Recipe(epochs=lab.pick(2, 40), batch=50, optimizer="adam", peak_lr=1e-3, weight_decay=0.0)
    remedies: dict = {"none": {}, "dropout": {}, "L2": {"l2": 0.01}, "L1": {"l1": 0.001}}
    remedies["early stopping"] = {"stop": (Patience(metric="val_loss", patience=4),)}
    rows: dict = {name: [] for name in remedies}
    for seed in lab.seeds(3):
        for (name, fields), colour in zip(remedies.items(), COLOURS, strict=False):
            keras.utils.set_random_seed(seed)
            model = mlp((256, 256), input_shape=preprocess.input_shape, dropout=0.5 if name == "dropout" else 0.0)
            history = lab.train(model, replace(recipe, **fields), train, test, preprocess).history
            seen, unseen = (evaluate(model, part, preprocess=preprocess) for part in (train, test))
            zeros = np.mean(np.abs(np.concatenate([w.numpy().ravel() for w in model.trainable_weights])) < 1e-3)
            rows[name].append([seen["loss"], unseen["loss"], 100 * unseen["accuracy"], 100 * zeros])
            if seed == 0:
                panel.plot([row["val_loss"] for row in history], color=colour, label=name)
    panel.set(xlabel="epoch, from 0", ylabel="cross-entropy of unseen pictures, nats")
    columns = {name: np.array(values).T for name, values in rows.items()}
    header = ["remedy", "training loss", "loss of unseen", "accuracy of unseen, %", "weights below 0.001, %"]
    table = [[name, *(spread(column, digits=2) for column in each)] for name, each in columns.items()]
    lab.table("An MLP of two times 256 units", header, table)
    gap, unseen = ({n: f(each) for n, each in columns.items()} for f in (lambda c: c[1] - c[0], lambda c: c[1].mean()))
    for name in list(remedies)[1:]:
        said = f"unseen minus training loss {spread(gap[name], digits=2)}, without {spread(gap['none'], digits=2)}"
        said += f"; loss of unseen {unseen[name]:.2f}, without {unseen['none']:.2f}"
        better = gap[name].mean() < 0.8 * gap["none"].mean() and unseen[name] < unseen["none"]
        lab.effect(f"{name} reduces overfitting", said, better)


def experiment(lab: Lab) -> None:
    """Shows overfitting three times, and what helps."""
    dropout(lab)
    caption = "Left: degree 15 swings between the points. Middle: hold-out samples. Right: one seed of each remedy."
    with lab.figure("regularization", caption, columns=3) as axes:
        for part, panel in zip((polynomials, hold_out, networks), axes[0], strict=True):
            part(lab, panel)
            panel.legend(fontsize=8) if part is not hold_out else None
