"""Pooling: what it computes, what it saves, how far it lets a network see, and what small shifts do.

Papers: Springenberg et al. 2014 (strided convolutions instead); Lin, Chen, Yan 2013 (global average pooling).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit.data import Preprocess, Source, load
from dlkit.lectures import Lab, spread
from dlkit.models import cnn, describe
from dlkit.train import Recipe

TITLE = "Pooling"
RUSSIAN = "Пуллинг и сжатие карт признаков; субдискретизация"
WHERE = "Lecture 000 (E. Sokolov), sections 5.5 and 8.3; lecture 004 (I. Ivanov), «Субдискретизация»"
FORMULA = """MaxPool   the largest value of each k x k window      AvgPool   its mean      (k = 2, step 2)
field     r <- r + (K - 1) j,  j <- j S:  pooling doubles j, so every later layer sees twice as much"""
KINDS = ("max", "average", "stride")


def identities(lab: Lab) -> None:
    x = np.array([[1, 3, 2, 9], [7, 4, 1, 5], [8, 5, 2, 3], [4, 2, 1, 4]], "float32")[None, :, :, None]
    largest, mean = (np.asarray(pool(x, 2, 2))[0, :, :, 0].tolist() for pool in (ops.max_pool, ops.average_pool))
    measured = f"maximum {largest}, average {mean}"
    lab.fact("the lecture's 4 x 4 map gives 7, 9, 8, 4", measured, largest == [[7, 9], [8, 4]])
    pooled, plain = (describe(cnn(4, 1, 0, head="average", downsample=kind)) for kind in ("max", "none"))
    cost = [(d.multiply_adds or 0) / 1e6 for d in (plain, pooled)]
    measured = (
        f"multiply-adds of four convolutions on 32 x 32: {cost[0]:.0f} million without, {cost[1]:.0f} with pooling"
    )
    lab.fact("later layers need less computation", measured, cost[0] > 5 * cost[1])
    fields = {
        name: [row.receptive_field[0] for row in d.layers if row.receptive_field and row.kind == "Conv2D"]
        for name, d in (("with pooling", pooled), ("without", plain))
    }
    measured = f"pixels seen by convolutions 1 to 4: {fields['with pooling']} with, {fields['without']} without"
    lab.fact("convolutions after pooling see larger parts of the picture", measured,
             fields["with pooling"] == [3, 8, 18, 38] and fields["without"] == [3, 5, 7, 9])  # fmt: skip
    heads = {head: describe(cnn(3, 1, 1, head=head)).parameters for head in ("dense", "average")}
    measured = ", ".join(f"{head} head {n:,}" for head, n in heads.items()) + " parameters (3 blocks, 32 x 32)"
    lab.fact("global average pooling makes the head small", measured, heads["dense"] > 3 * heads["average"])
    with lab.figure("field", "How much of the picture a value sees, in pixels of the input.") as axes:
        for name, sizes in fields.items():
            axes[0, 0].plot(range(1, 5), sizes, "o-", label=name)
        axes[0, 0].set(xlabel="convolution (3 x 3)", ylabel="receptive field, pixels", xticks=range(1, 5))
        axes[0, 0].legend()


def same_class(model: keras.Model, test: Source, preprocess: Preprocess, shift: int) -> float:
    """Returns the share of pictures, in %, whose predicted class stays when they move to the right."""
    images = np.asarray(test.take(np.arange(len(test))))
    moved = np.concatenate([np.repeat(images[:, :, :1], shift, 2), images], 2)[:, :, : images.shape[2]]
    before, after = (model.predict(preprocess.from_images(x), verbose=0).argmax(1) for x in (images, moved))
    return 100 * float((before == after).mean())


def photographs(lab: Lab) -> None:
    train, test = load("digits") if lab.quick else lab.cifar(4000, 2000)
    preprocess = Preprocess(8, channels=1, mean=0.3, std=0.37) if lab.quick else Preprocess(32)
    recipe, shifts = Recipe(epochs=lab.pick(1, 10), batch=lab.pick(256, 64), peak_lr=0.05), lab.pick((1,), (1, 2, 3, 4))
    nets: dict[str, Any] = {kind: {"downsample": kind, "convs": 1, "head": "average", "dense": 0} for kind in KINDS}
    nets["own convolution"] = {**nets["stride"], "convs": 2}  # the second one takes the step, in place of the pooling
    nets["max, dense head"] = {**nets["max"], "head": "dense", "dense": 1}
    accuracy: dict[str, list[float]] = {name: [] for name in nets}
    stays: dict[str, list[list[float]]] = {name: [] for name in nets}
    sizes = {}
    for name, parts in nets.items():
        for seed in lab.seeds():
            keras.utils.set_random_seed(seed)
            model = cnn(lab.pick(2, 3), filters=16, input_shape=preprocess.input_shape, norm="batch", **parts)
            accuracy[name].append(100 * lab.train(model, recipe, train, test, preprocess).metrics["accuracy"])
            stays[name].append([same_class(model, test, preprocess, shift) for shift in shifts])
        sizes[name] = describe(model).parameters
    one = {name: spread([share[0] for share in found], " %") for name, found in stays.items()}
    rows = [[name, f"{sizes[name]:,}", spread(accuracy[name], " %"), one[name]] for name in nets]
    header = ["network", "parameters", "test accuracy", "same class after a shift by 1 pixel"]
    lab.table(f"Three blocks, {len(train):,} training pictures", header, rows)
    mean = {name: np.mean(stays[name], 0)[0] for name in nets}
    measured = "same class after 1 pixel: " + ", ".join(f"{kind} {one[kind]}" for kind in KINDS)
    agrees = bool(min(mean["max"], mean["average"]) > mean["stride"])
    lab.effect("pooling withstands small shifts better than strided convolutions", measured, agrees)
    text = {name: f"{name} {spread(found, ' %')}" for name, found in accuracy.items()}
    apart = np.mean(accuracy["own convolution"]) - np.mean(accuracy["max"])
    says = "a convolution of its own with stride 2 can take the place of pooling (test accuracy within 3 %)"
    lab.effect(says, ", ".join(text[name] for name in (*KINDS, "own convolution")), bool(apart > -3))
    apart = np.mean(accuracy["max"]) - np.mean(accuracy["max, dense head"])
    says = "global average pooling can take the place of dense layers (test accuracy within 3 %)"
    lab.effect(says, f"{text['max']}, {text['max, dense head']}", bool(apart > -3))
    caption = "Share of test pictures whose class stays when they move to the right (mean of the seeds)."
    with lab.figure("shifts", caption) as axes:
        for name, found in stays.items():
            axes[0, 0].plot([0, *shifts], [100, *np.mean(found, 0)], "o-", label=name)
        axes[0, 0].set(xlabel="shift, pixels", ylabel="same predicted class, %")
        axes[0, 0].legend(fontsize=8)


def few_digits(lab: Lab) -> None:
    train, test = load("digits")
    preprocess = Preprocess(8, channels=1, mean=0.3, std=0.37)
    found: dict[str, list[float]] = {"max": [], "none": []}
    recipe = Recipe(epochs=lab.pick(1, 40), batch=50, peak_lr=0.05)
    for kind in found:
        for seed in lab.seeds():
            keras.utils.set_random_seed(seed)
            model = cnn(2, 1, input_shape=(8, 8, 1), filters=16, downsample=kind)
            result = lab.train(model, recipe, train.subset(range(200)), test, preprocess)
            found[kind].append(100 * result.metrics["accuracy"])
    pooled, plain = found["max"], found["none"]
    measured = f"test accuracy after 200 training digits: pooling {spread(pooled, ' %')}, none {spread(plain, ' %')}"
    lab.effect("pooling helps against overfitting", measured, bool(np.mean(pooled) > np.mean(plain)))


def experiment(lab: Lab) -> None:
    identities(lab)
    photographs(lab)
    few_digits(lab)
