"""How weights start: variance of the activations by depth, and learning curves on real digits.

Papers: Glorot, Bengio 2010 (Xavier initialisation); He et al. 2015 (for ReLU).
"""

import keras
import numpy as np
import tensorflow as tf

from dlkit import initializers
from dlkit.data import Preprocess, load
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import mlp
from dlkit.train import Recipe, losses

TITLE = "Initial weights"
RUSSIAN = "Инициализация весов сети"
WHERE = "Lecture 003 (M. Gushchin), «Инициализация весов сети»; 002 (St Petersburg), «Инициализация весов»"
FORMULA = """z = sum_i w_i x_i:   Var(z) = n Var(w) Var(x)
constant  w = c        normal  N(0, 1)        uniform  U(-a, a), here a = 0.05
Xavier    N(0, 1/n)    Glorot  N(0, 2/(n_in + n_out))    He  N(0, 2/n_in), for ReLU"""
KINDS = ("constant", "normal", "uniform", "xavier", "glorot", "he")
DEPTH, UNITS = 10, 128
PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)


def network(kind: str, activation: str, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    start = initializers.get("constant", value=0.01) if kind == "constant" else kind
    return mlp((UNITS,) * DEPTH, input_shape=(8, 8, 1), activation=activation, initializer=start)


def digits(count: int) -> tuple[tf.Tensor, np.ndarray]:
    train, _ = load("digits")
    return PREPROCESS.from_images(train.take(np.arange(count))), np.asarray(train.labels)[:count]


def deviations(kind: str, activation: str, seed: int) -> np.ndarray:
    """Returns the root mean square of the input and of each layer's z = W h + b, before training."""
    model, (images, _) = network(kind, activation, seed), digits(500)
    probe = keras.Model(model.input, [model.get_layer(f"fc{i}").output for i in range(1, DEPTH + 1)])
    outputs = probe(images, training=False)
    return np.array([np.sqrt(np.mean(np.square(np.asarray(z, "float64")))) for z in (images, *outputs)])


def constant(lab: Lab) -> None:
    model, (images, labels) = network("constant", "relu", 0), digits(100)
    kernels = [model.get_layer(f"fc{i}").kernel for i in range(2, DEPTH + 1)]
    with tf.GradientTape() as tape:
        loss = losses.get("cross_entropy")(labels, model(images, training=True))
    gradient = max(float(np.ptp(g.numpy(), axis=1).max()) for g in tape.gradient(loss, [k.value for k in kernels]))
    values = np.ptp(keras.Model(model.input, model.get_layer("fc5_act").output).predict(images, verbose=0), 1).max()
    measured = f"largest difference between units of a layer: values {values:.0e}, gradients {gradient:.0e}"
    lab.fact(
        "a constant: all units of a layer are equal, and so are their gradients", measured, values + gradient < 1e-6
    )


def variance(lab: Lab) -> dict[tuple[str, str], np.ndarray]:
    found = {
        (kind, activation): np.array([deviations(kind, activation, seed) for seed in lab.seeds()])
        for activation in ("none", "tanh", "relu") for kind in KINDS
    }  # fmt: skip

    def factors(kind: str, activation: str) -> list[float]:
        """Returns for each seed the factor of Var(z) from one layer to the next, on geometric average."""
        return [float((z[-1] / z[1]) ** (2 / (DEPTH - 1))) for z in found[kind, activation]]

    for kind, activation, says in (
        ("xavier", "none", "Xavier keeps the variance: Var(z) = n Var(w) Var(x) = Var(x)"),
        ("xavier", "relu", "Xavier keeps the variance with any activation, so with ReLU"),
        ("he", "relu", "He keeps the variance with ReLU"),
        ("normal", "relu", "a poor start lets signals explode: N(0, 1)"),
        ("uniform", "relu", "a poor start lets signals fade: U(-0.05, 0.05)"),
    ):
        ratio, text = np.mean(factors(kind, activation)), spread(factors(kind, activation), digits=2)
        agrees = {"normal": ratio > 2, "uniform": ratio < 0.5}.get(kind, 0.8 < ratio < 1.25)
        lab.effect(says, f"Var(z) from layer to layer, activation {activation}: times {text}", bool(agrees))
    return found


def curves(lab: Lab) -> dict[str, np.ndarray]:
    """Returns the test accuracy after each epoch in %, (seeds, epochs), for each initialisation."""
    train, test = load("digits")
    recipe = Recipe(epochs=lab.pick(1, 15), batch=lab.pick(256, 64), optimizer="adam", peak_lr=1e-3,
                    schedule="constant", warmup_epochs=0, weight_decay=0.0)  # fmt: skip
    return {
        kind: np.array([
            [100 * row["val_accuracy"] for row in
             lab.train(network(kind, "relu", seed), recipe, train, test, PREPROCESS).history]
            for seed in lab.seeds()
        ])
        for kind in KINDS
    }  # fmt: skip


def experiment(lab: Lab) -> None:
    constant(lab)
    found, accuracy = variance(lab), curves(lab)
    text = {kind: spread(accuracy[kind][:, -1].tolist(), " %") for kind in KINDS}
    stuck = max(accuracy["constant"][:, -1]) < 50 < min(accuracy["xavier"][:, -1])
    lab.effect("started with a constant the network does not learn", f"test accuracy {text['constant']}", stuck)
    never = accuracy["he"].shape[1] + 1
    epochs = {kind: [int(np.argmax(np.append(run, 100) >= 90)) + 1 for run in accuracy[kind]] for kind in KINDS}
    measured = ", ".join(f"{kind} {spread(epochs[kind])}, {text[kind]}" for kind in KINDS[1:])
    measured = f"first epoch with 90 % ({never}: never), and last test accuracy: {measured}"
    lab.effect("Xavier speeds training up", measured, max(epochs["xavier"]) < min(epochs["normal"] + epochs["uniform"]))
    caption = "Size of z by depth before training, and test accuracy on the digits (means of the seeds)."
    with lab.figure("initialization", caption, 1, 3, size=(4.3, 3.5)) as axes:
        for kind, colour in zip(KINDS, COLOURS, strict=False):
            for panel, activation in zip(axes[0], ("tanh", "relu"), strict=False):
                panel.semilogy(found[kind, activation].mean(0), "o-", ms=3, color=colour, label=kind)
                panel.set(xlabel="layer (0 is the input)", ylabel="root mean square of z", title=activation)
            axes[0, 2].plot(np.arange(1, accuracy[kind].shape[1] + 1), accuracy[kind].mean(0), "o-", ms=3, color=colour)
        axes[0, 2].set(xlabel="epoch", ylabel="test accuracy, %", title=f"{DEPTH} layers of {UNITS} units, ReLU")
        axes[0, 1].legend(fontsize=8)
