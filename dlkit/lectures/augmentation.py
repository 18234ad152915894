"""Augmentation: how much each kind helps on 500, 2,000 and 10,000 pictures, and a flip that changes the class.

Lecture: E. Sokolov, lecture 7, section 7: rotations, shifts, scales, reflections; brightness, contrast, saturation;
noise and blur; "the transformation must not change the semantic class".
"""

import keras
import numpy as np
from sklearn.datasets import load_sample_image

from dlkit.data import Preprocess, eval_pipeline, from_arrays, load
from dlkit.data.augment import Affine, Blur, Color, Flip, GaussianNoise, preview
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import cnn
from dlkit.train import Recipe

TITLE = "Data augmentation"
RUSSIAN = "Аугментация данных"
WHERE = "E. Sokolov, lecture 7 of 2025, section 7"
FORMULA = "train on (T(x), y), T random with class(T(x)) = class(x)"
KINDS: dict = {
    "none": (),
    "geometry": (Affine(rotate=10, shift=0.1, scale=0.1),),
    "mirror": (Flip(),),
    "colour": (Color(brightness=0.2, contrast=0.2, saturation=0.2),),
    "noise, blur": (GaussianNoise((0.0, 0.05)), Blur((0.0, 0.7))),
}
KINDS["all"] = sum(KINDS.values(), ())


def trained(lab, preprocess, train, augment, steps, seed):
    """Returns a small network after `steps` steps of 50 pictures: equal compute, however many pictures there are."""
    keras.utils.set_random_seed(seed)
    model = cnn(2, 2, 0, filters=16, norm="batch", head="average", input_shape=preprocess.input_shape)
    recipe = Recipe(epochs=max(1, steps * 50 // len(train)), batch=50, peak_lr=0.05, augment=augment, seed=seed)
    lab.train(model, recipe, train, None, preprocess)
    return model


def answers(model, source, preprocess):
    """Returns the predicted and the true classes."""
    batches = eval_pipeline(source, preprocess, 250)
    found = [(np.argmax(model(images, training=False), 1), np.argmax(true, 1)) for images, true in batches]
    return (np.concatenate(parts) for parts in zip(*found, strict=True))


def learning_curves(lab):
    """Returns accuracy[kind][pictures], percent, one value for each seed."""
    preprocess = lab.pick(Preprocess(8, channels=1), Preprocess(16))
    train, test = load("digits") if lab.quick else lab.cifar(10_000, 4000, size=16)
    accuracy: dict = {kind: {} for kind in lab.pick(("none", "all"), tuple(KINDS))}
    for kind, sizes in accuracy.items():
        for count in lab.pick((100, 400), (500, 2000, 10_000)):
            sizes[count] = []
            for seed in lab.seeds(2):
                part = train.subset(np.random.default_rng(seed).permutation(len(train))[:count])
                model = trained(lab, preprocess, part, KINDS[kind], lab.pick(8, 600), seed)
                found, true = answers(model, test, preprocess)
                sizes[count].append(100 * np.mean(found == true))
    return accuracy


def flipped_digits(lab):
    """Returns errors[kind], percent of digits, and how many 6 are taken for a 9 or the reverse, for each seed."""
    preprocess, (train, test) = Preprocess(8, channels=1), load("digits")
    kinds = {"none": (), "small shifts": (Affine(rotate=10, shift=0.08),), "turned up to 180": (Affine(rotate=180),),
             "mirrored": (Flip(horizontal=0.5, vertical=0.5),)}  # fmt: skip
    kinds = {kind: kinds[kind] for kind in lab.pick(("none", "mirrored"), tuple(kinds))}
    errors: dict = {kind: [] for kind in kinds}
    swapped: dict = {kind: [] for kind in kinds}
    for kind, augment in kinds.items():
        for seed in lab.seeds(3):
            model = trained(lab, preprocess, train, augment, lab.pick(8, 300), seed)
            found, true = answers(model, test, preprocess)
            errors[kind].append(100 * np.mean(found != true))
            swapped[kind].append(np.sum((found == 6) & (true == 9) | (found == 9) & (true == 6)))
    return errors, swapped


def experiment(lab: Lab) -> None:
    """Trains the same network with each kind of augmentation, on few and on many pictures."""
    accuracy, (errors, swapped) = learning_curves(lab), flipped_digits(lab)
    draw(lab, accuracy, errors)
    few, *_, many = accuracy["none"]
    rows = [[kind, *(spread(values, " %") for values in sizes.values())] for kind, sizes in accuracy.items()]
    lab.table("Test accuracy", ["augmentation", *(f"{count:,} pictures" for count in accuracy["none"])], rows)
    gain = {
        kind: {count: np.subtract(values, accuracy["none"][count]) for count, values in sizes.items()}
        for kind, sizes in accuracy.items()
    }
    for kind in list(gain)[1:]:
        said = f"gain in accuracy on {few:,} pictures: {spread(gain[kind][few], ' points')}"
        lab.effect(f"augmentation helps as a regulariser: {kind}", said, min(gain[kind][few]) > 0)
    said = f"gain of all kinds together: {few:,} pictures {spread(gain['all'][few], ' points')}, {many:,} pictures "
    more = np.mean(gain["all"][few]) > np.mean(gain["all"][many])
    lab.effect("it matters most where data are few", said + spread(gain["all"][many], " points"), more)
    text = {k: f"{spread(v, ' %')}, {np.mean(swapped[k]):.1f} swaps of 6 and 9" for k, v in errors.items()}
    for kind in list(errors)[1:]:
        said = f"test error on digits, {kind}: {text[kind]}; without: {text['none']}"
        if kind == "small shifts":
            better = np.mean(errors[kind]) < np.mean(errors["none"])
            lab.effect("shifts and rotations that keep the class help", said, better)
        else:
            lab.effect(f"a change of the class hurts: {kind}", said, min(errors[kind]) > max(errors["none"]))


def draw(lab, accuracy, errors):
    """Draws one photograph under each kind, the learning curves, and the digits' errors."""
    photo = from_arrays(load_sample_image("flower.jpg")[None, 100:340, 200:440], [0])
    caption = "One photograph as it is shown in two epochs."
    with lab.figure("kinds", caption, rows=2, columns=lab.pick(4, 6), size=(1.2, 1.3)) as axes:
        for column, (kind, augment) in zip(axes.T, KINDS.items(), strict=False):
            for epoch, panel in enumerate(column):
                shown = preview(photo, augment, index=0, epoch=epoch, preprocess=Preprocess(48)).image
                panel.imshow(shown, interpolation="nearest")
                panel.set_axis_off()
            column[0].set_title(kind, fontsize=10)
    with lab.figure("augmentation", "Mean over the seeds (left), each seed (right).", columns=2) as axes:
        left, right = axes[0]
        for (kind, sizes), colour in zip(accuracy.items(), (COLOURS[6], *COLOURS), strict=False):
            left.semilogx(list(sizes), [np.mean(v) for v in sizes.values()], "o-", color=colour, label=kind)
        counts = list(accuracy["none"])
        left.set(xlabel="training pictures", ylabel="test accuracy, %", xticks=counts, xticklabels=map(str, counts))
        left.minorticks_off()
        left.legend(fontsize=9)
        for place, values in enumerate(errors.values()):
            right.plot(values, [place] * len(values), "o", color=COLOURS[place])
        right.set(yticks=range(len(errors)), yticklabels=errors, xlabel="test error on digits, %")
