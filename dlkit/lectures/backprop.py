"""Backpropagation by hand (Rumelhart et al. 1986), nonlinearity, and universal approximation (Cybenko 1989)."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import make_moons

from dlkit.data import Source, Standardize, from_arrays
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import mlp
from dlkit.train import Recipe

TITLE = "Backpropagation, nonlinearity and universal approximation"
RUSSIAN = "Обратное распространение ошибки; проблемы линейности; теорема об универсальной аппроксимации"
WHERE = "Lecture 002 (St Petersburg), «Backpropagation»; 003 (M. Gushchin); 000 (E. Sokolov), sections 2.3 and 4"
FORMULA = """one neuron   L = (o - y)^2 / 2,  o = s(w x + b):   dL/dw = (o - y) s'(z) x,   dL/db = (o - y) s'(z)
two layers   o = s(W2 s(W1 x)):   dL/dz2 = (o - y) s'(z2),  dL/dW2 = dL/dz2 h1',  dL/dz1 = (W2' dL/dz2) s'(z1)
two linear   W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)
Cybenko      for every continuous f and eps > 0 there is a width m with |f(x) - sum_j a_j s(w_j x + b_j)| < eps"""
X = np.linspace(0, 1, 2049, dtype="float32")[:, None]
Y = np.sin(4 * np.pi * X**2) + np.abs(X - 0.5)  # continuous, not smooth


def by_hand(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Returns the gradients of mean_i |o_i - y_i|^2 / 2 for W1, b1, W2, b2, ...: forward, then layer by layer back."""
    kernels, h = weights[0::2], [x]
    for kernel, bias in zip(kernels, weights[1::2], strict=True):
        h.append(1 / (1 + np.exp(-(h[-1] @ kernel + bias))))
    gradients: list[np.ndarray] = []
    error = (h[-1] - y) / len(x)  # dL/do
    for layer in reversed(range(len(kernels))):
        error = error * h[layer + 1] * (1 - h[layer + 1])  # dL/dz, for s' = s (1 - s)
        gradients = [h[layer].T @ error, error.sum(0), *gradients]
        error = error @ kernels[layer].T  # dL/dh of the layer before it
    return gradients


def identities(lab: Lab) -> None:
    x, y = np.random.default_rng(0).random((2, 16, 4), "float32")
    for units in ((), (3,)):
        model = mlp(units, classes=4, input_shape=(4,), activation="sigmoid", classifier_activation="sigmoid")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (2 * len(x))
        machine = [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]
        hand = by_hand([w.astype("float64") for w in model.get_weights()], x, y)
        worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(machine, hand, strict=True))
        says = f"the chain rule, by hand, gives the gradients of the network with layers: {len(units) + 1}"
        lab.fact(says, f"relative difference from automatic differentiation {worst:.1e}", worst < 1e-5)
    w1, b1, w2, b2 = (model := mlp((8,), input_shape=(4,), activation="none")).get_weights()
    one = x @ (w1 @ w2) + (b1 @ w2 + b2)
    worst = np.abs(np.asarray(model(x, training=False)) - one).max() / np.abs(one).max()
    lab.fact("linear layers one after the other are one linear layer", f"relative difference {worst:.1e}", worst < 1e-5)


def problem(name: str, seed: int) -> tuple[Source, Source]:
    rng, (x, y) = np.random.default_rng(seed), make_moons(1000, noise=0.1, random_state=seed)
    if name == "spirals":
        y, t = rng.integers(0, 2, 1000), np.sqrt(rng.random(1000)) * 3 * np.pi
        x = np.stack([t * np.cos(t + np.pi * y), t * np.sin(t + np.pi * y)], 1) + rng.normal(0, 0.3, (1000, 2))
    source = from_arrays(x.astype("float32"), y, classes=("0", "1"))
    return source.subset(range(700)), source.subset(range(700, 1000))


def separation(lab: Lab) -> None:
    recipe = Recipe(epochs=lab.pick(5, 100), batch=64, optimizer="adam", peak_lr=0.01, weight_decay=0.0)
    caption = "A linear classifier draws one straight line; two hidden layers bend round both classes (seed 0)."
    with lab.figure("separation", caption, 2, 2, size=(3.8, 3.2)) as axes:
        for row, name in enumerate(("moons", "spirals")):
            found: list[list[float]] = [[], []]
            for seed, column in [(seed, column) for seed in lab.seeds() for column in (0, 1)]:
                train, test = problem(name, seed)
                keras.utils.set_random_seed(seed)
                model, standard = mlp(((), (32, 32))[column], classes=2, input_shape=(2,)), Standardize.of(train)
                found[column].append(100 * lab.train(model, recipe, train, test, standard).metrics["accuracy"])
                if seed == 0:
                    title = f"{name}, {('linear', 'MLP 2-32-32-2')[column]}"
                    axes[row, column].set(title=title, xlabel="$x_1$", ylabel="$x_2$")
                    regions(axes[row : row + 1, column], model, standard, test)
            measured = f"test accuracy: linear {spread(found[0], ' %')}, MLP {spread(found[1], ' %')}"
            lab.effect(f"{name}: an MLP solves it, a linear one does not", measured, max(found[0]) < 95 < min(found[1]))


def regions(axes: np.ndarray, model: keras.Model, standard: Standardize, test: Source) -> None:
    x = np.asarray(test.take(np.arange(len(test))))
    a, b = np.meshgrid(*(np.linspace(column.min(), column.max(), 120) for column in x.T))
    logits = model.predict(standard.from_rows(np.stack([a.ravel(), b.ravel()], 1)), verbose=0)
    axes[0].contourf(a, b, np.argmax(logits, 1).reshape(a.shape), levels=1, colors=COLOURS[:2], alpha=0.25)
    axes[0].plot(*x[test.labels == 0].T, "o", *x[test.labels == 1].T, "^", ms=3)


def constructed(width: int) -> float:
    """Returns max |f - network| for steep units side by side on [0, 1]; least squares gives the output weights."""
    model, centres = mlp((width,), classes=1, input_shape=(1,), activation="tanh"), (np.arange(width) + 0.5) / width
    out = np.linalg.lstsq(np.c_[np.tanh(2 * width * (X - centres)), np.ones(len(X))], Y, rcond=1e-7)[0]
    model.set_weights([np.full((1, width), 2 * width), -2 * width * centres, out[:-1], out[-1]])
    return float(np.abs(model.predict(X, verbose=0) - Y).max())


def trained(lab: Lab, units: tuple[int, ...], seed: int) -> float:
    """Returns max |f - network| where descent finds all weights, from random ones."""
    keras.utils.set_random_seed(seed)
    source, model = from_arrays(X, Y), mlp(units, classes=1, input_shape=(1,), activation="tanh", initializer="glorot")
    recipe = Recipe("regression", lab.pick(3, 100), 64, "adam", 0.01, weight_decay=0.0, seed=seed)
    lab.train(model, recipe, source, None, standard := Standardize.of(source))
    return float(np.abs(model.predict(standard.from_rows(X), verbose=0) - Y).max())


def experiment(lab: Lab) -> None:
    identities(lab)
    separation(lab)
    built, wide = {n: constructed(n) for n in (1, 2, 4, 8, 16, 32, 64)}, [(n,) for n in lab.pick((16,), (4, 16, 64))]
    deep = lab.pick([(99,), (11,) * 3], [(99,), (15,) * 2, (11,) * 3, (9,) * 4])  # 286 to 298 parameters each
    errors = {units: [trained(lab, units, seed) for seed in lab.seeds()] for units in wide + deep}
    found = {units: f"{len(units)} x {units[0]}: {spread(errors[units], digits=2)}" for units in errors}
    says = "a wide enough hidden layer approximates a continuous function to any eps (here 0.1): such weights exist"
    measured = "largest error by width: " + ", ".join(f"{width}: {error:.2f}" for width, error in built.items())
    lab.fact(says, f"{measured}; found by descent: {', '.join(found[units] for units in wide)}", built[64] < 0.1)
    measured = "largest error at about 300 parameters, layers x units: " + ", ".join(found[units] for units in deep)
    better = np.mean(errors[deep[-1]]) < np.mean(errors[deep[0]])
    lab.effect("of networks that descent finds, deep ones need fewer parameters", measured, better)
    caption = "One layer can come close to sin(4 pi x^2) + abs(x - 1/2); descent finds close networks with more layers."
    with lab.figure("approximation", caption, size=(6.8, 4)) as axes:
        panel, points = axes[0, 0], [(3 * width + 1, error) for width, error in built.items()]
        panel.plot(*np.transpose(points), "s-", label="1 layer, output weights by least squares")
        for units, error in errors.items():
            parameters = mlp(units, classes=1, input_shape=(1,)).count_params()
            style = {"color": COLOURS[len(units)], "label": f"{len(units)} x {units[0]} units, by descent"}
            panel.plot([parameters] * len(error), error, "ov^<>"[len(units)], **style)
        panel.set(xscale="log", yscale="log", xlabel="parameters", ylabel="largest |f - network|")
        panel.legend(fontsize=8)
