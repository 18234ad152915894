"""Batch, layer, instance, group and RMS normalisation and weight standardisation against the batch size.

Lectures: I. Ivanov, lecture 3 ("Other kinds of normalisation", WS); E. Sokolov, lecture 7, section 6.2. Papers: Y. Wu,
K. He, "Group Normalization", 2018 (figure 1 and its rule: the learning rate grows with the batch); S. Qiao et al.,
"Weight Standardization", 2019; B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

import itertools
import timeit

import keras
import numpy as np
import tensorflow as tf

from dlkit import layers
from dlkit.data import Preprocess, load
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.train import Recipe

TITLE = "Normalisations against the batch size"
RUSSIAN = "Другие виды нормализаций"
WHERE = "I. Ivanov, lecture 3 of 2025; E. Sokolov, lecture 7 of 2025, section 6.2"
FORMULA = """y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta, with mu and sigma over
batch: (batch, H, W)    layer: (H, W, C)    instance: (H, W)    group: (H, W, C / groups)
rms:    y = gamma x / sqrt(mean(x^2) + eps)
WS:     W^ = (W - mean(W)) / sqrt(var(W) + eps) for each filter"""
NORMS = {
    "batch": lambda: layers.BatchNorm(),
    "layer": lambda: layers.LayerNorm(axis=(-3, -2, -1)),
    "instance": lambda: layers.InstanceNorm(),
    "group": lambda: layers.GroupNorm(groups=4),
    "rms": lambda: layers.RMSNorm(),
    "group + WS": lambda: layers.GroupNorm(groups=4),
}


def network(norm):
    """Returns a small convolutional net for digits; with WS its kernels are standardised too."""
    conv = layers.WSConv2D if norm.endswith("WS") else keras.layers.Conv2D
    inputs = x = keras.Input((8, 8, 1))
    for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2)):
        x = conv(filters, 3, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = keras.layers.ReLU()(NORMS[norm]()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def gap(a, b):
    """Returns the largest difference of two tensors."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def formulas(lab):
    """Checks what the formulas imply, on the first maps of real digits."""
    images = tf.cast(load("digits")[0].take(range(32)), tf.float32) / 255
    maps = keras.layers.Conv2D(8, 3, kernel_initializer=keras.initializers.HeNormal(seed=0))(images)
    norms = {name: NORMS[name]() for name in ("batch", "layer", "instance", "group", "rms")}
    alone = {n: gap(norm(maps, training=True)[:1], norm(maps[:1], training=True)) for n, norm in norms.items()}
    lab.fact(
        "only batch normalisation's statistics depend on the other objects of the batch",
        "change of a digit's maps when 31 others leave: " + ", ".join(f"{n} {v:.1g}" for n, v in alone.items()),
        alone.pop("batch") > 0.01 and max(alone.values()) < 1e-5,
    )
    layer, rms = norms["layer"], norms["rms"]
    ends = gap(layers.GroupNorm(1)(maps), layer(maps)), gap(layers.GroupNorm(8)(maps), norms["instance"](maps))
    says = "group normalisation lies between layer (one group) and instance normalisation (a group for each channel)"
    lab.fact(says, f"largest differences {ends[0]:.1g} and {ends[1]:.1g}", max(ends) < 1e-5)
    move = gap(layer(maps + 3.0), layer(maps)), gap(rms(maps + 3.0), rms(maps))
    said = f"adding 3 to all maps changes layer norm's output by {move[0]:.1g}, RMS norm's by {move[1]:.2g}"
    lab.fact("RMS normalisation does not subtract the mean", said, move[0] < 1e-4 and move[1] > 0.1)
    conv = layers.WSConv2D(8, 3)
    before = conv(images)
    conv.kernel.assign(3.0 * conv.kernel + 2.0)
    change = gap(conv(images), before)
    said = f"W -> 3 W + 2 changes outputs of up to {float(tf.reduce_max(before)):.2g} by {change:.1g}"
    lab.fact("weight standardisation sees neither the mean nor the scale of a filter", said, change < 1e-2)


def speed():
    """Returns the median times of LayerNorm and RMSNorm in milliseconds, taken in turns."""
    x = tf.random.stateless_normal((4096, 512), (0, 1))
    layer, rms = layers.LayerNorm(), layers.RMSNorm()
    calls = [tf.function(lambda: layer(x, training=True)), tf.function(lambda: rms(x, training=True))]
    times = [[timeit.timeit(call, number=1) for call in calls] for _ in range(60)]
    return 1e3 * np.median(times[5:], axis=0)


def experiment(lab: Lab) -> None:
    """Trains one network with every norm and batch size, each for the same epochs."""
    formulas(lab)
    layer, rms = speed()
    said = f"4096 x 512 values, forward in training, median of 55: layer {layer:.2f} ms, RMS {rms:.2f} ms"
    lab.effect("RMS normalisation is cheaper than layer normalisation", said, rms < layer)
    train, test = load("digits")
    train, test = train.subset(range(lab.pick(100, 1000))), test.subset(range(lab.pick(100, 364)))
    batches, names = lab.pick((4, 50), (2, 8, 32, 128)), lab.pick(("batch", "layer", "group"), tuple(NORMS))
    errors: dict = {name: {batch: [] for batch in batches} for name in names}
    for seed in lab.seeds(2):
        for name, batch in itertools.product(names, batches):
            keras.utils.set_random_seed(seed)
            recipe = Recipe(epochs=lab.pick(1, 3), batch=batch, peak_lr=0.1 * batch / 32, seed=seed)
            result = lab.train(network(name), recipe, train, test, Preprocess(8, channels=1))
            errors[name][batch].append(100 - 100 * result.metrics["accuracy"])
    with lab.figure("norms", "Test error after three epochs; bars: deviation of the seeds.", size=(7, 4)) as axes:
        panel = axes[0, 0]
        for name, colour in zip(names, COLOURS, strict=False):
            rows = np.array(list(errors[name].values()))
            panel.errorbar(batches, rows.mean(1), rows.std(1), marker="o", capsize=3, label=name, color=colour)
        panel.set_xscale("log", base=2)
        panel.set(xticks=batches, xticklabels=batches, xlabel="pictures in a batch", ylabel="test error, %")
        panel.legend(fontsize=9)
    small, usual = batches[0], batches[-1] if lab.quick else 32
    at = {name: {batch: spread(values, " %") for batch, values in rows.items()} for name, rows in errors.items()}
    mean = {name: {batch: np.mean(values) for batch, values in rows.items()} for name, rows in errors.items()}
    lab.table(
        "Test error after equal epochs",
        ["norm", *(f"batch {b}" for b in batches)],
        [[n, *at[n].values()] for n in names],
    )
    said = f"its test error: {at['batch'][small]} at batch {small}, {at['batch'][usual]} at batch {usual}"
    said += "; at batch 2 its statistics still come from 8 to 128 values for each channel"
    noisy = mean["batch"][small] > mean["batch"][usual] + 1
    lab.effect("batch normalisation becomes noisy at small batches", said, noisy)
    for name, says in (("layer", "is stable at any batch size"), ("group", "is useful at small batches")):
        lab.effect(
            f"{name} normalisation {says}",
            f"its test error: {at[name][small]} at batch {small}, {at[name][usual]} at batch {usual}; batch "
            f"normalisation's {at['batch'][small]} at batch {small}",
            mean[name][small] < min(mean["batch"][small], mean[name][usual] + 2),
        )
