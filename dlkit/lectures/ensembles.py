"""Ensembles: averaged probabilities of several networks, by top-1 and top-5 error.

Lecture: E. Sokolov, lecture 7, section 8.2. Papers: K. Simonyan, A. Zisserman, 2014, section 4.4 (VGG's result is the
average of several networks' softmax outputs); B. Lakshminarayanan et al., "Deep Ensembles", 2017.
"""

import itertools

import keras
import numpy as np

from dlkit.data import Preprocess, eval_pipeline, load
from dlkit.data.augment import Flip, RandomCrop
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import cnn, ensemble
from dlkit.train import Recipe

TITLE = "Ensembles"
RUSSIAN = "VGG: композиция моделей, ошибка top-5"
WHERE = "E. Sokolov, lecture 7 of 2025, section 8.2"
FORMULA = "p(x) = 1/M sum_m p_m(x);   top-5 error: share of objects whose class is not among the five most probable"


def error(probabilities, labels, top):
    """Returns the percentage of rows whose label is not among the `top` most probable classes."""
    best = np.argsort(-probabilities, axis=-1)[:, :top]
    return 100 - 100 * np.mean(np.any(best == labels[:, None], axis=1))


def nats(probabilities, labels):
    """Returns the mean cross-entropy."""
    return -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))


def experiment(lab: Lab) -> None:
    """Trains networks that differ only in their random weights and order of pictures, and averages them."""
    if lab.quick:
        train, test, preprocess = *(part.subset(range(200)) for part in load("digits")), Preprocess(8, channels=1)
    else:
        train, test, preprocess = *lab.cifar(5000, 5000, size=16), Preprocess(16)
    members = []
    for seed in range(lab.pick(3, 8)):
        keras.utils.set_random_seed(seed)
        blocks, filters = lab.pick((2, 8), (3, 24))
        model = cnn(blocks, 2, 0, norm="batch", head="average", input_shape=preprocess.input_shape, filters=filters)
        recipe = Recipe(epochs=lab.pick(2, 12), batch=50, peak_lr=0.05, seed=seed,
                        augment=() if lab.quick else (RandomCrop(2), Flip()))  # fmt: skip
        lab.train(model, recipe, train, None, preprocess)
        members.append(model)

    batches = list(eval_pipeline(test, preprocess, 250))
    labels = np.concatenate([targets.numpy().argmax(1) for _, targets in batches])
    whole = ensemble(members)
    outputs = [whole.predict_on_batch(images) for images, _ in batches]
    averaged = np.concatenate([output["probabilities"] for output in outputs])
    apart = np.concatenate([output["disagreement"] for output in outputs])
    each = np.array([np.concatenate([keras.ops.softmax(m.predict_on_batch(x)) for x, _ in batches]) for m in members])
    count = len(members)
    errors: dict = {top: {} for top in (1, 5)}  # top -> members -> errors of all ensembles of so many
    for top, size in itertools.product(errors, range(1, count + 1)):
        groups = itertools.combinations(range(count), size)
        errors[top][size] = [error(each[list(group)].mean(0), labels, top) for group in groups]
    draw(lab, errors, apart, averaged.argmax(1) == labels)

    lab.fact("the ensemble's answer is the average of the softmax outputs",
             f"largest difference {np.max(np.abs(averaged - each.mean(0))):.1g}",
             np.max(np.abs(averaged - each.mean(0))) < 1e-5)  # fmt: skip
    single, together = np.mean([nats(p, labels) for p in each]), nats(averaged, labels)
    lab.fact("an average is never worse than its members on average, in cross-entropy (Jensen)",
             f"members {single:.3f} nats, average {together:.3f}", together <= single)  # fmt: skip
    tops = {top: [np.mean(values) for values in sizes.values()] for top, sizes in errors.items()}
    lab.fact("the top-5 error is at most the top-1 error", f"ensemble: top-1 {tops[1][-1]:.1f} %, top-5 "
             f"{tops[5][-1]:.1f} %", tops[5][-1] <= tops[1][-1])  # fmt: skip
    for top, alone in ((5, errors[5][1]), (1, errors[1][1])):
        says = f"a composition of models reaches a clearly lower top-{top} error"
        lab.effect(says, f"top-{top} error: one network {spread(alone, ' %')}, {count} networks {tops[top][-1]:.1f} %",
                   tops[top][-1] < min(alone) - np.std(alone, ddof=1))  # fmt: skip
    gain = tops[1][0] - np.array(tops[1])
    said = "top-1 error by number of members: " + ", ".join(f"{value:.1f}" for value in tops[1]) + " %"
    lab.effect("half of the members bring three quarters of the gain", said, gain[count // 2 - 1] > 0.75 * gain[-1])


def draw(lab, errors, apart, right):
    """Draws errors against the number of members, and accuracy against agreement."""
    caption = "Left, middle: every ensemble of so many members, and means. Right: tenths of the pictures by agreement."
    with lab.figure("ensembles", caption, columns=3) as axes:
        for panel, (top, sizes), colour in zip(axes[0], errors.items(), COLOURS, strict=False):
            for size, values in sizes.items():
                panel.plot([size] * len(values), values, ".", color=colour, alpha=0.3)
            panel.plot(sizes.keys(), [np.mean(values) for values in sizes.values()], "-", color=colour)
            panel.set(xlabel="members", ylabel=f"top-{top} test error, %")
        tenths = np.array_split(np.argsort(apart), 10)
        axes[0, 2].plot([apart[part].mean() for part in tenths], [100 * right[part].mean() for part in tenths], "o-")
        axes[0, 2].set(xlabel="disagreement, 0 to 1", ylabel="accuracy of the ensemble, %")
