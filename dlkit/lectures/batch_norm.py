"""Batch normalisation: what it computes (Ioffe, Szegedy 2015), what it allows, and why (Santurkar et al. 2018)."""

from typing import Any

import keras
import numpy as np

from dlkit.data import Preprocess, Source, load, train_pipeline
from dlkit.layers import BatchNorm
from dlkit.lectures import COLOURS, Along, Lab, spread
from dlkit.models import cnn
from dlkit.train import DivergedError, Recipe, losses

TITLE = "Batch normalisation"
RUSSIAN = "Пакетная нормализация; переосмысление Batch Normalization"
WHERE = "Lecture 000 (E. Sokolov), section 6 and 6.1; lecture 004 (I. Ivanov), «Внутренний ковариационный сдвиг» and on"
FORMULA = """training   y = gamma (x - mu_B) / sqrt(var_B + eps) + beta,   mu_avg <- alpha mu_avg + (1 - alpha) mu_B
inference  y = gamma (x - mu_avg) / sqrt(var_avg + eps) + beta;   4 numbers for each feature map"""
RATE, STEP = 0.01, 0.03  # 1x with momentum; of plain descent
RUNS: dict[str, tuple[int, dict]] = {
    "without, 1x": (1, {}), "without, 5x": (5, {}), "without, 30x": (30, {}),
    "with, 1x": (1, {"norm": "batch"}), "with, 5x": (5, {"norm": "batch"}), "with, 30x": (30, {"norm": "batch"}),
    "after the activation, 5x": (5, {"norm": "batch", "norm_position": "after"}),
    "dropout, with, 5x": (5, {"norm": "batch", "dropout": 0.5}),
}  # fmt: skip
UNITS = {"loss": "range of the loss", "angle": "angle of gradients, degrees", "shift": "relative covariate shift"}


class Noisy(BatchNorm):
    """Scales and shifts after the normalisation at random, around values that are new in each step (Santurkar, A.1)."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        y, draw, channels = super().call(inputs, training, mask), keras.random.uniform, inputs.shape[-1:]
        shift = draw(channels, -0.5, 0.5) + draw(keras.ops.shape(inputs), -0.1, 0.1)
        scale = draw(channels, 1, 1.25) + 0.1 * keras.random.normal(keras.ops.shape(inputs))
        return scale * y + shift if training else y


def formulas(lab: Lab) -> None:
    x = np.asarray(load("digits")[0].take(np.arange(128))).reshape(128, 64).astype("float32") / 255
    layer, mean, var = BatchNorm(momentum=0.9, epsilon=1e-5), x.mean(0), x.var(0)
    apart = [np.abs(layer(x, training=True) - (x - mean) / np.sqrt(var + 1e-5)).max()]
    apart += [np.abs(layer.moving_mean - 0.1 * mean).max(), np.abs(layer.moving_variance - (0.9 + 0.1 * var)).max()]
    measured = f"differences of output, mu_avg, var_avg: {', '.join(f'{a:.0e}' for a in apart)}"
    lab.fact("training takes the batch's statistics and moves the averages", measured, max(apart) < 1e-4)
    alone = [np.abs(layer(x[:1], training=mode) - layer(x, training=mode)[:1]).max() for mode in (False, True)]
    measured = f"an object alone and in its batch: {alone[0]:.0e} apart at inference, {alone[1]:.1f} in training"
    lab.fact("inference ignores the batch", measured, alone[0] < 1e-5 and alone[1] > 0.1)
    layer.set_weights([np.sqrt(var + 1e-5), mean, *layer.get_weights()[2:]])
    apart, count = np.abs(layer(x, training=True) - x).max(), layer.count_params() / 64
    says = "with gamma = sqrt(var + eps) and beta = mu it does nothing; it has 4 numbers for each feature"
    lab.fact(says, f"largest difference from the input {apart:.0e}; {count:.0f} numbers", apart < 1e-4 and count == 4)


def build(lab: Lab, preprocess: Preprocess, seed: int, **parts: Any) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return cnn(*lab.pick((2, 1), (3, 2)), filters=8, units=64, input_shape=preprocess.input_shape, **parts)


def comparisons(lab: Lab, data: tuple[Source, Source], preprocess: Preprocess) -> None:
    epochs, curves = lab.pick(1, 8), {name: list[Any]() for name in RUNS}
    for name, (factor, parts) in RUNS.items():
        for seed in lab.seeds():
            recipe = Recipe(epochs=epochs, batch=lab.pick(512, 64), peak_lr=factor * RATE, weight_decay=0.0, seed=seed)
            try:
                history = lab.train(build(lab, preprocess, seed, **parts), recipe, *data, preprocess).history
                curves[name].append([100 * row["val_accuracy"] for row in history])
            except DivergedError:
                curves[name].append([10.0] * epochs)  # weights that are not finite can only guess
    last = {name: np.array(found)[:, -1] for name, found in curves.items()}
    mean, text = {n: np.mean(v) for n, v in last.items()}, {n: f"{n}: {spread(v, ' %')}" for n, v in last.items()}
    plain, best = (max(group, key=lambda name: mean[name]) for group in (list(RUNS)[:3], list(RUNS)[3:6]))
    sooner = next((i for i, a in enumerate(np.mean(curves[best], 0), 1) if a >= mean[plain]), np.inf)
    for says, one, other, agrees in (
        ("it bears 30 times the rate", "with, 30x", "without, 30x", min(last["with, 30x"]) > max(last["without, 30x"])),
        ("it improves the accuracy", best, plain, min(last[best]) > max(last[plain])),
        (f"it reaches the other's accuracy in half of the epochs or fewer (after {sooner} of {epochs})",
         best, plain, sooner <= epochs / 2),
        ("it belongs before the activation, and can work after it", "with, 5x", "after the activation, 5x",
         mean["with, 5x"] >= mean["after the activation, 5x"]),
        ("it makes dropout needless", "with, 5x", "dropout, with, 5x", mean["with, 5x"] >= mean["dropout, with, 5x"]),
    ):  # fmt: skip
        lab.effect(says, f"test accuracy, {text[one]}; {text[other]}", bool(agrees))
    with lab.figure("rates", f"Test accuracy at 1, 5 and 30 times the rate {RATE} (means of the seeds).") as axes:
        for i, (name, found) in enumerate(list(curves.items())[:6]):
            axes[0, 0].plot(np.arange(epochs) + 1, np.mean(found, 0), ["--", "-"][i // 3], c=COLOURS[i % 3], label=name)
        axes[0, 0].set(xlabel="epoch", ylabel="test accuracy, %")
        axes[0, 0].legend(fontsize=8)


def why(lab: Lab, data: tuple[Source, Source], preprocess: Preprocess) -> None:
    train, epochs, names = data[0], lab.pick(2, 20), {"without": "none", "with": "batch", "with noise": Noisy}
    found, marks = ({name: list[Any]() for name in names} for _ in range(2))
    images, labels = preprocess.from_images(train.take(np.arange(128))), np.asarray(train.labels)[:128]
    for name, norm in names.items():
        for seed in lab.seeds():
            model, rows = build(lab, preprocess, seed, norm=norm), list[dict]()
            look = Along(model, images, labels, STEP, lab.pick("conv2_1", "conv3_2"))
            note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_, r=rows, look=look: r.append(look()))
            model.compile(keras.optimizers.SGD(STEP), losses.get("cross_entropy"))
            stream = train_pipeline(train, preprocess, (), batch=64, seed=seed)
            past = model.fit(stream, epochs=epochs, steps_per_epoch=15, verbose=0, shuffle=False, callbacks=[note])
            found[name].append({what: [row[what] for row in rows] for what in UNITS})
            marks[name].append(past.history["loss"][-1])
    mean = {what: {name: [np.median(run[what]) for run in runs] for name, runs in found.items()} for what in UNITS}
    text = {w: ", ".join(f"{n} {spread(v, digits=2)}" for n, v in mean[w].items()) for w in UNITS}
    text["shift"] += "; last training loss: " + ", ".join(f"{n} {spread(v, digits=2)}" for n, v in marks.items())
    shift, loss, angle = mean["shift"], mean["loss"], mean["angle"]
    for says, what, agrees in (
        ("it does not reduce the covariate shift", "shift", np.mean(shift["with"]) >= np.mean(shift["without"])),
        ("with noise after it the shift is larger than without it, and training still better", "shift",
         min(shift["with noise"]) > max(shift["without"]) and max(marks["with noise"]) < min(marks["without"])),
        ("it smooths the loss along the gradient", "loss", max(loss["with"]) < min(loss["without"])),
        ("it steadies the gradient's direction", "angle", max(angle["with"]) < min(angle["without"])),
    ):  # fmt: skip
        lab.effect(says, f"{UNITS[what]}: {text[what]}", bool(agrees))
    with lab.figure("why", "Along the gradient in training (means of the seeds).", 1, 3, size=(4.2, 3.4)) as axes:
        for panel, (what, label) in zip(axes.flat, UNITS.items(), strict=True):
            for name, runs in found.items():
                panel.plot(15 * np.arange(len(runs[0][what])), np.mean([run[what] for run in runs], 0), label=name)
            panel.set(xlabel=f"step of plain descent, rate {STEP}", ylabel=label)
        axes[0, 0].legend(fontsize=8)


def experiment(lab: Lab) -> None:
    formulas(lab)
    data = load("digits") if lab.quick else lab.cifar(2000, 1000)
    preprocess = Preprocess(8, channels=1, mean=0.3, std=0.37) if lab.quick else Preprocess(32)
    comparisons(lab, data, preprocess)
    why(lab, data, preprocess)
