"""AlexNet, VGG and ResNet at equal compute, columns, VGG-19's troubles, and three small filters for a large one.

Lecture: E. Sokolov, lecture 7, section 8. Papers: A. Krizhevsky et al., 2012 (AlexNet); A. Krizhevsky, "One weird
trick", 2014 (one column); K. Simonyan, A. Zisserman, 2014 (VGG, section 3.1 on growing); K. He et al., 2015 (ResNet).
"""

import keras
import numpy as np

from dlkit.data import Preprocess, load
from dlkit.data.augment import Flip, RandomCrop
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import alexnet, cnn, describe, grow, resnet_cifar, vgg
from dlkit.train import Recipe

TITLE = "AlexNet, VGG, ResNet"
RUSSIAN = "Архитектуры сверточных сетей"
WHERE = "E. Sokolov, lecture 7 of 2025, section 8"
FORMULA = "three 3x3 convolutions: 27 C^2 weights, field 7x7;   one 7x7: 49 C^2 weights, field 7x7"
GROUPS = (
    ("AlexNet, 1 column", "VGG-11", "ResNet-20"),
    ("VGG-19", "VGG-19, grown", "VGG-19, batch norm"),
    ("three 3x3", "one 7x7", "one column", "two columns"),
)
SMALL: dict = {"classes": 10, "stem": "cifar", "dropout": 0.0}  # runs are too short to need dropout


def nets(lab, size):
    """Returns name -> builder; slim copies of about 10 million multiply-adds for each picture of 32 pixels."""
    shape: dict = {"input_shape": (size, size, 3)}
    deep, depth = lab.pick(("B", 8), ("E", 20))  # a quick run, never judged, has smaller ones under the same names
    three: dict = {"filters": 16, "head": "average", "norm": "batch", **shape}
    return {
        "AlexNet, 1 column": lambda: alexnet(1, width=0.225, **SMALL, **shape),
        "VGG-11": lambda: vgg("A", width=0.125, **SMALL, **shape),
        "ResNet-20": lambda: resnet_cifar(depth, width=0.5, **shape),
        "VGG-19": lambda: vgg(deep, width=0.125, **SMALL, **shape),
        "VGG-19, batch norm": lambda: vgg(deep, width=0.125, norm="batch", **SMALL, **shape),
        "three 3x3": lambda: cnn(2, 3, 0, kernel=3, **three),
        "one 7x7": lambda: cnn(2, 1, 0, kernel=7, **three),
    }


def experiment(lab: Lab) -> None:
    """Trains the networks of the lecture's section 8 at equal compute and compares them."""
    train, test = (part.subset(range(50)) for part in load("digits")) if lab.quick else lab.cifar(5000, 2000)
    moved = lab.pick((), (RandomCrop(2), Flip()))
    epochs, late = lab.pick((1, 1), (8, 5))  # VGG-11's 8 epochs cost 3 of VGG-19: growing costs what 8 of VGG-19 cost
    made = nets(lab, 32)
    curves: dict = {}

    def trained(name, model, size=32, epochs=epochs):
        recipe = Recipe(epochs=epochs, batch=50, optimizer="adam", peak_lr=1e-3, weight_decay=0.0, augment=moved)
        result = lab.train(model, recipe, train, test, Preprocess(size))
        curves.setdefault(name, []).append([100 * row["val_accuracy"] for row in result.history])
        return model

    for seed in lab.seeds(2):
        keras.utils.set_random_seed(seed)
        done = {name: trained(name, build()) for name, build in made.items()}
        trained("VGG-19, grown", grow(done["VGG-11"], lab.pick("B", "E")), epochs=late)
        for name, columns in (("one column", 1), ("two columns", 2)):  # slimmer: the grouped ones train slowly on CPUs
            done[name] = trained(name, alexnet(columns, width=0.125, input_shape=(24, 24, 3), **SMALL), size=24)

    costs = {name: describe(model) for name, model in done.items()}
    curves = {name: np.array(runs) for name, runs in curves.items()}
    last = {name: runs[:, -1] for name, runs in curves.items()}
    text = {name: spread(values, " %") for name, values in last.items()}
    draw(lab, curves, lab.pick(0.5, 3.4))  # 8 epochs of VGG-11 cost 3.4 of VGG-19
    lab.table(
        "Slim copies; test accuracy after the runs", ["network", "parameters", "million multiply-adds", "accuracy"],
        [[name, f"{d.parameters:,}", f"{(d.multiply_adds or 0) / 1e6:.1f}", text[name]] for name, d in costs.items()],
    )  # fmt: skip

    a, v, r, plain, grown, normed = (*GROUPS[0], *GROUPS[1])
    shown = f"test accuracy at equal compute ({epochs} epochs of {len(train):,} pictures)"
    said = f"{shown}: AlexNet {text[a]}, VGG-11 {text[v]}, ResNet-20 {text[r]}"
    lab.effect("VGG is better than AlexNet", said, last[v].mean() > last[a].mean())
    lab.effect("ResNet is better than VGG", said, last[r].mean() > last[v].mean())
    reads = [done[name].get_layer("conv4").kernel.shape[2] for name in ("one column", "two columns")]
    lab.fact(
        "in two columns that do not see each other a filter reads half of the channels",
        f"a filter of conv4 reads {reads[0]} channels in one column and {reads[1]} in two",
        2 * reads[1] == reads[0],
    )
    lab.effect(
        "one column (2014) does as well as the two of 2012 at equal compute",
        f"one column {text['one column']}, two columns {text['two columns']}",
        last["one column"].mean() > last["two columns"].mean() - 1,
    )
    said = f"{shown}: from random weights {text[plain]}"
    bad = last[plain].mean() < last[v].mean() - 5
    lab.effect("VGG with 19 layers does not converge or does badly", f"{said}; VGG-11 {text[v]}", bad)
    better = last[grown].mean() > last[plain].mean() + 5
    lab.effect("grown from a shallow net, VGG-19 trains", f"{said}, grown from VGG-11 {text[grown]}", better)
    lab.effect(
        "with batch normalisation VGG-19 trains from scratch, without such tricks", f"{said}, with it {text[normed]}",
        last[normed].mean() > max(last[plain].mean() + 5, last[grown].mean()),
    )  # fmt: skip
    bare: dict = {"input_shape": (32, 32, 64), "filters": 64, "downsample": "none", "include_top": False}
    small, large = describe(cnn(1, 3, kernel=3, **bare)), describe(cnn(1, 1, kernel=7, **bare))
    seen = [round((net.receptive_field or (0,))[0]) for net in (small, large)]
    lab.fact(
        "small filters widen the field without so many parameters",
        f"64 channels: three 3x3 hold {small.parameters:,} and see {seen[0]} pixels, one 7x7 {large.parameters:,} and "
        f"{seen[1]}",
        seen[0] == seen[1] and small.parameters < 0.6 * large.parameters,
    )
    lab.effect(
        "many nonlinearities in a row make the model more expressive",
        f"test accuracy: three 3x3 {text['three 3x3']}, one 7x7 {text['one 7x7']}",
        last["three 3x3"].mean() > last["one 7x7"].mean(),
    )


def draw(lab, curves, spent):
    """Draws test accuracies; a grown network starts where its shallow one has spent its share."""
    caption = "Mean test accuracy, bands from seed to seed. Right: small and large filters; slim AlexNets on 24 pixels."
    with lab.figure("architectures", caption, columns=3) as axes:
        for panel, names, label in zip(axes[0], GROUPS, ("epoch", "epoch of VGG-19's cost", "epoch"), strict=True):
            for name, colour in zip(names, COLOURS, strict=False):
                runs = curves[name]
                epochs = np.arange(1, runs.shape[1] + 1) + (spent if name == "VGG-19, grown" else 0)
                panel.plot(epochs, runs.mean(0), "o-", color=colour, label=name, markersize=3)
                panel.fill_between(epochs, runs.min(0), runs.max(0), color=colour, alpha=0.15)
            panel.set(xlabel=label, ylabel="test accuracy, %")
            panel.legend(fontsize=9)
