"""Degradation: deeper plain networks train worse, residual ones do not.

Lecture: E. Sokolov, lecture 7, section 8.3. Paper: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image
Recognition", 2015, figure 6 and section 4.2. The networks are the paper's own for CIFAR, on pictures of half the size.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from dlkit.data import Preprocess, eval_pipeline, load
from dlkit.data.augment import Flip, RandomCrop
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import resnet_cifar
from dlkit.train import Recipe

TITLE = "Degradation and residual connections"
RUSSIAN = "ResNet: революция остаточных связей"
WHERE = "E. Sokolov, lecture 7 of 2025, section 8.3"
FORMULA = "H(x) = F(x) + x"


def kernel_gradients(model, images, targets):
    """Returns the norm of the loss's gradient with respect to every 3x3 kernel, from the input to the output."""
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
    kernels = [v for v in model.trainable_variables if len(v.shape) == 4]
    return np.array([float(tf.norm(g)) for g in tape.gradient(loss, [v.value for v in kernels])])


def experiment(lab: Lab) -> None:
    """Measures the training error of plain and residual nets, their gradients, and a net of a thousand layers."""
    digits, digit_size = load("digits")[0], Preprocess(8, channels=1)
    train = digits.subset(range(400)) if lab.quick else lab.cifar(5000, 1, size=16)[0]
    preprocess, (shallow, deep) = lab.pick((digit_size, (8, 14)), (Preprocess(16), (20, 56)))
    recipe = Recipe(  # the paper's, with a cosine in place of its steps
        epochs=lab.pick(1, 12), batch=100, optimizer="momentum", peak_lr=0.1, weight_decay=1e-3,
        augment=lab.pick((), (RandomCrop(2), Flip())),
    )  # fmt: skip

    def net(depth, residual, norm="batch"):
        return resnet_cifar(depth, residual=residual, norm=norm, input_shape=preprocess.input_shape)

    errors = {}  # (residual, depth) -> training error in percent, (seeds, epochs)
    for residual, depth in itertools.product((False, True), (shallow, deep)):
        rows = []
        for seed in lab.seeds(3):
            keras.utils.set_random_seed(seed)
            result = lab.train(net(depth, residual), recipe, train, None, preprocess)
            rows.append([100 - 100 * row["accuracy"] for row in result.history])
        errors[residual, depth] = np.array(rows)
    images, targets = next(iter(eval_pipeline(train, preprocess, lab.pick(50, 200))))
    kinds = {"plain": (False, "batch"), "residual": (True, "batch"), "plain, no batch norm": (False, "none")}
    gradients = {}
    for name, (residual, norm) in kinds.items():
        keras.utils.set_random_seed(0)
        gradients[name] = kernel_gradients(net(deep, residual, norm), images, targets)

    # as deep as the lecture names: on pictures of 8 pixels
    very_deep, curves = lab.pick(26, 998), {}
    part, few = digits.subset(range(lab.pick(200, len(digits)))), Recipe(epochs=lab.pick(1, 6), batch=64, peak_lr=0.1)
    for residual in lab.pick((True,), (False, True)):
        keras.utils.set_random_seed(0)
        model = resnet_cifar(very_deep, version="v2", residual=residual, input_shape=digit_size.input_shape)
        curves[residual] = [100 * row["accuracy"] for row in lab.train(model, few, part, None, digit_size).history]

    draw(lab, errors, gradients, curves, very_deep)
    last = {key: rows[:, -1] for key, rows in errors.items()}
    text = {key: spread(values, " %") for key, values in last.items()}
    lab.effect(
        f"quality falls with depth even on the training set: {deep} plain layers train worse than {shallow}",
        f"training error after {recipe.epochs} epochs: {shallow} layers {text[False, shallow]}, "
        f"{deep} layers {text[False, deep]}",
        bool(np.all(last[False, deep] > last[False, shallow])),
    )
    lab.effect(
        "with residual connections depth does not hurt",
        f"training error: {shallow} layers {text[True, shallow]}, {deep} layers {text[True, deep]}; the runs have "
        f"{recipe.epochs * len(train) // recipe.batch} of the paper's 64,000 steps",
        last[True, deep].mean() <= last[True, shallow].mean() + max(last[True, shallow].std(), 1.0),
    )
    said = f"training error: residual {text[True, deep]}, plain {text[False, deep]}"
    better = bool(np.all(last[True, deep] < last[False, deep]))
    lab.effect(f"at {deep} layers the residual net trains better than the plain one", said, better)
    ratio = {name: g[:3].mean() / g[-3:].mean() for name, g in gradients.items()}
    lab.effect(
        "the cause is that gradients vanish on their way to the first layers",
        f"gradient norm of the first three kernels over the last three, {deep} layers, before training: "
        f"{'; '.join(f'{name} {value:.2g}' for name, value in ratio.items())}. Above 1 they grow on their way; He et "
        "al. (section 4.1) too argue that gradients do not vanish in plain nets with batch normalisation",
        ratio["plain"] < 0.1,
    )
    uneven = {name: g.max() / g.min() for name, g in gradients.items()}
    lab.effect(
        "residual connections make the gradient pass more easily through the network",
        "largest over smallest norm among the kernels: " + "; ".join(f"{n} {v:.3g}" for n, v in uneven.items()),
        uneven["residual"] < uneven["plain"],
    )
    said = (
        f"{very_deep} layers (pre-activation) on {len(part)} digits: training accuracy {curves[True][-1]:.1f} % after "
    )
    said += f"{few.epochs} epochs" + (f"; the plain one {curves[False][-1]:.1f} %" if False in curves else "")
    lab.effect("residual networks of 152 and even 1000 layers train", said + "; one seed", curves[True][-1] > 90)


def draw(lab, errors, gradients, curves, very_deep):
    """Draws training errors, gradients by layer and the very deep net."""
    caption = (
        "Left: training error, mean and range of the seeds. Middle: gradients before training. Right: very deep nets."
    )
    with lab.figure("degradation", caption, columns=3) as axes:
        left, middle, right = axes[0]
        for (residual, depth), rows in errors.items():
            epochs = np.arange(1, rows.shape[1] + 1)
            colour, style = COLOURS[1 - residual], "-" if depth == max(d for _, d in errors) else "--"
            left.plot(epochs, rows.mean(0), style, color=colour, label=f"{('plain', 'residual')[residual]} {depth}")
            left.fill_between(epochs, rows.min(0), rows.max(0), color=colour, alpha=0.15)
        left.set(xlabel="epoch", ylabel="training error, %")
        for name, colour in zip(gradients, (COLOURS[1], COLOURS[0], COLOURS[6]), strict=True):
            middle.semilogy(range(1, len(gradients[name]) + 1), gradients[name], color=colour, label=name)
        middle.set(xlabel="convolution, from input to output", ylabel="gradient norm of its kernel")
        for residual, values in curves.items():
            name = f"{('plain', 'residual')[residual]} {very_deep}"
            right.plot(range(1, len(values) + 1), values, "o-", color=COLOURS[1 - residual], label=name)
        right.set(xlabel="epoch", ylabel="training accuracy on digits, %", ylim=(0, 102))
        for panel in axes[0]:
            panel.legend(fontsize=9)
