"""The activations of the lectures' tables, units that die, and the beta that Swish learns.

Papers: Glorot, Bordes, Bengio 2011 (ReLU); Maas, Hannun, Ng 2013 (leaky ReLU); Ramachandran, Zoph, Le 2017 (Swish).
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from dlkit.data import Preprocess, load, train_pipeline
from dlkit.layers import Maxout, activation
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import mlp
from dlkit.train import losses

TITLE = "Activations, dying units and the beta of Swish"
RUSSIAN = "Нелинейность и функции активации"
WHERE = "Lecture 000 (E. Sokolov), section 3; tables of 001 (E. Sokolov), 003 (M. Gushchin) and 004 (I. Ivanov)"
FORMULA = """ReLU(x) = max(0, x): gradient 0 or 1      leaky ReLU(x) = max(0.01 x, x)      Swish(x) = x sigmoid(beta x)
ELU, SELU, GELU, softplus, sigmoid, tanh(x) = 2 sigmoid(2x) - 1, PReLU, SiLU, Maxout(x) = max(w1 x + b1, w2 x + b2)"""
PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)
SLOW, FAST = 0.001, 0.02  # rates of Adam: the usual one, and one that throws units far
ERF = np.vectorize(math.erf)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# name -> the formula of the lectures' tables, in float64
TABLE: dict[str, Callable] = {
    "relu": lambda x: np.maximum(0, x),
    "leaky_relu": lambda x: np.maximum(0.01 * x, x),
    "prelu": lambda x: np.where(x < 0, 0.25 * x, x),  # drawn at alpha = 0.25; it is learnt
    "elu": lambda x: np.where(x < 0, np.exp(x) - 1, x),
    "selu": lambda x: 1.0507 * np.where(x < 0, 1.67326 * (np.exp(x) - 1), x),
    "gelu": lambda x: x / 2 * (1 + ERF(x / math.sqrt(2))),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "sigmoid": sigmoid,
    "tanh": lambda x: 2 * sigmoid(2 * x) - 1,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(2 * x),  # drawn at beta = 2; it is learnt
    "maxout": lambda x: np.maximum(-x, x),  # drawn at w1 = -1, w2 = 1
}


def slope(layer: keras.layers.Layer, x: np.ndarray) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(point := tf.constant(x))
        y = layer(point)
    return tape.gradient(y, point).numpy()


def curves(lab: Lab) -> None:
    x = np.linspace(-4, 4, 400, dtype="float32")[:, None]  # 0 itself is not among them
    drawn = {"prelu": {"alpha_initializer": keras.initializers.Constant(0.25)}, "swish": {"beta": 2.0}}
    layers = {name: activation(name, **drawn.get(name, {})) for name in TABLE if name != "maxout"}
    layers["maxout"] = Maxout(1, 2, kernel_initializer=lambda *_, **__: tf.constant([[-1.0, 1.0]]))
    values = {name: np.asarray(layer(x)) for name, layer in layers.items()}
    slopes = {name: slope(layer, x) for name, layer in layers.items()}
    worst = max(np.abs(values[name] - TABLE[name](x.astype("float64"))).max() for name in TABLE)
    lab.fact("the tables' formulas", f"largest difference of {len(TABLE)} layers on [-4, 4]: {worst:.1e}", worst < 1e-4)
    found = np.unique(slopes["relu"]).tolist()
    lab.fact("the derivative of ReLU is 0 or 1", f"values found: {found}", found == [0.0, 1.0])
    measured = f"largest slope {slopes['sigmoid'].max():.4f}; ten layers pass at most {0.25**10:.0e}"
    lab.fact("sigmoid: the gradient fades, by 1/4 or less in each layer", measured, slopes["sigmoid"].max() <= 0.25)
    passed = {name: float(np.abs(slopes[name][x < 0]).mean()) for name in ("relu", "leaky_relu", "silu")}
    measured = ", ".join(f"{name} {value:.3f}" for name, value in passed.items())
    says = "for negative inputs ReLU passes no gradient, leaky ReLU and Swish do"
    lab.fact(says, f"mean slope (its size) on [-4, 0]: {measured}", passed.pop("relu") == 0 < min(passed.values()))
    with lab.figure("curves", "Every activation of the tables, and its gradient.", 3, 4, size=(2.6, 2.1)) as axes:
        for panel, name in zip(axes.flat, TABLE, strict=True):
            panel.plot(x, values[name], label="f(x)")
            panel.plot(x, slopes[name], "--", label="f'(x)")
            panel.set(title=name, xlabel="x", ylim=(-2, 4), xticks=(-4, -2, 0, 2, 4))
        axes[0, 0].legend(fontsize=8)


def train(lab: Lab, name: str, rate: float, seed: int) -> tuple[list[float], list[float]]:
    """Returns the share of dead units after each epoch in %, and beta of each layer where it is learnt."""
    source, _ = load("digits")
    keras.utils.set_random_seed(seed)
    model = mlp((64,) * 5, input_shape=(8, 8, 1), activation=name)
    images = PREPROCESS.from_images(source.take(np.arange(len(source))))
    acts = [model.get_layer(f"fc{i}_act") for i in range(1, 6)]
    probe = keras.Model(model.input, [act.input for act in acts])
    shares: list[float] = []

    def count(*_: object) -> None:
        """A unit is dead whose slope is not above 0.001 for any training picture: none of them moves its weights."""
        inputs = probe.predict(images, batch_size=len(images), verbose=0)
        dead = [~(np.abs(slope(act, z)) > 1e-3).any(0) for act, z in zip(acts, inputs, strict=True)]
        shares.append(100 * float(np.mean(dead)))

    model.compile(keras.optimizers.Adam(rate), losses.get("cross_entropy"))
    notes = keras.callbacks.LambdaCallback(on_train_begin=count, on_epoch_end=count)
    stream = train_pipeline(source, PREPROCESS, (), batch=64, seed=seed)
    size = lab.pick({"epochs": 1, "steps_per_epoch": 5}, {"epochs": 20, "steps_per_epoch": 22})
    model.fit(stream, callbacks=[notes], verbose=0, shuffle=False, **size)
    return shares, [float(act.beta) for act in acts] if name == "swish" else []


def experiment(lab: Lab) -> None:
    curves(lab)
    names, rates = ("relu", "leaky_relu", "swish"), (SLOW, FAST)
    runs = {(n, r): [train(lab, n, r, seed) for seed in lab.seeds()] for n in names for r in rates}
    dead = {key: [shares[-1] for shares, _ in found] for key, found in runs.items()}
    measured = ", ".join(f"{name} at rate {rate} {spread(share, ' %')}" for (name, rate), share in dead.items())
    start = [shares[0] for shares, _ in runs["relu", FAST]]
    dies = min(dead["relu", FAST]) > max(start + dead["leaky_relu", FAST] + dead["swish", FAST])
    measured = f"dead units: ReLU before training {spread(start, ' %')}; after it: {measured}"
    lab.effect("ReLU's units die in training, those of leaky ReLU and Swish do not", measured, dies)
    betas = np.array([beta for _, beta in runs["swish", SLOW]])
    layers = ", ".join(f"layer {i}: {spread(column, digits=2)}" for i, column in enumerate(betas.T, 1))
    apart = np.ptp(betas.mean(0)) > 2 * (betas.std(0, ddof=1).max() if len(betas) > 1 else 0)
    lab.effect("beta is learnt: it leaves 1, differently in each layer", f"beta at rate {SLOW}: {layers}", apart)
    caption = "Dead units over training (mean of the seeds), and what beta Swish learns in each layer."
    with lab.figure("training", caption, 1, 2, size=(5.2, 3.6)) as axes:
        for (name, rate), found in runs.items():
            style = {"color": COLOURS[names.index(name)], "ls": "-" if rate == FAST else "--"}
            axes[0, 0].plot(np.mean([shares for shares, _ in found], 0), label=f"{name}, rate {rate}", **style)
        axes[0, 0].set(xlabel="epoch", ylabel="dead units, %", title="five layers of 64 units, digits")
        axes[0, 0].legend(fontsize=8)
        axes[0, 1].errorbar(range(1, 6), betas.mean(0), betas.std(0), fmt="o-", capsize=3, label="mean, deviation")
        axes[0, 1].set(xlabel="layer", ylabel="beta", title=f"beta of Swish, rate {SLOW}", xticks=range(1, 6))
        axes[0, 1].axhline(1, color=COLOURS[7], ls=":", label="start")
        axes[0, 1].legend(fontsize=8)
