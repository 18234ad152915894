"""Localisation: the box of the one object in a picture, by regression with the lecture's squared loss.

Lecture: E. Sokolov, "Introduction to deep learning" (Sirius 2025), its first task: "exactly one person on each photo,
find the rectangle". Here the objects are handwritten digits, drawn on pieces of scikit-learn's two photographs; the
test pictures come from parts of the photographs, and from digits, that training has not seen.
"""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import Ridge

from dlkit.data import Preprocess, from_arrays
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.models import cnn, localizer
from dlkit.train import Recipe, evaluate, losses

TITLE = "Localisation by regression"
RUSSIAN = "Пример задачи: детекция объектов; функция потерь"
WHERE = 'E. Sokolov, "Введение в глубинное обучение", Sirius 2025, slides "Пример задачи" to "Функционал ошибки"'
FORMULA = "L(y, z) = (a_y - a_z)^2 + (b_y - b_z)^2 + (c_y - c_z)^2 + (d_y - d_z)^2"
SIDE = 48  # pixels


def pictures(count, part, seed):
    """Returns `count` pieces of photographs with a digit on each, and the digits' boxes (x, y, width, height).

    Args:
        part: "train" takes the left two thirds of each photograph and the first 1,400 digits, "test" the rest.
    """
    random, digits = np.random.default_rng(seed), load_digits().images / 16.0
    digits = digits[:1400] if part == "train" else digits[1400:]
    images, boxes = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((count, 4))
    photos = [photo[::2, ::2] for photo in load_sample_images().images]  # 213 x 320 pixels
    for i in range(count):
        photo = photos[random.integers(2)]
        low, high = (0, 213 - SIDE) if part == "train" else (213, 320 - SIDE)
        top, left = random.integers(photo.shape[0] - SIDE), random.integers(low, high)
        side = random.integers(12, 33)
        ink = tf.image.resize(digits[random.integers(len(digits))][..., None], (side, side)).numpy()
        rows, columns = (np.flatnonzero(ink[..., 0].max(axis) > 0.3) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape[:2]
        y, x = random.integers(SIDE - height + 1), random.integers(SIDE - width + 1)
        images[i] = photo[top : top + SIDE, left : left + SIDE]
        place = images[i, y : y + height, x : x + width]
        place[:] = place * (1 - ink) + 255 * random.dirichlet((1, 1, 1)) ** 0.3 * ink  # a colour of its own
        boxes[i] = np.array([x, y, width, height]) / SIDE
    return images, boxes


def overlap(boxes, found):
    """Returns the intersection over union, picture by picture."""
    return 1 - np.asarray(losses.IoU(reduction=None)(boxes.astype("float32"), found.astype("float32")))


def pixels(images):
    """Returns every second pixel in each direction, as features of a linear model."""
    return images[:, ::2, ::2].reshape(len(images), -1) / 255.0


def linear(images, boxes):
    """Returns the lecture's a(x) = w_0 + sum w_j x_j with the L2 penalty that suits a fifth held out best."""
    x, cut = pixels(images), 4 * len(images) // 5
    fits = [Ridge(penalty).fit(x[:cut], boxes[:cut]) for penalty in (10.0, 100.0, 1000.0, 10_000.0)]
    return min(fits, key=lambda fit: np.mean((fit.predict(x[cut:]) - boxes[cut:]) ** 2))


def experiment(lab: Lab) -> None:
    """Trains a convolutional localizer and compares its boxes with those of the lecture's linear model."""
    preprocess = Preprocess(SIDE)
    train_pictures, train_boxes = pictures(lab.pick(200, 6000), "train", 0)
    images, boxes = pictures(lab.pick(100, 500), "test", 1)
    train, test = from_arrays(train_pictures, None, boxes=train_boxes), from_arrays(images, None, boxes=boxes)
    recipe = Recipe(task="box", epochs=lab.pick(2, 12), batch=50, optimizer="adam", peak_lr=1e-3, weight_decay=0.0)

    runs = []
    for seed in lab.seeds(2):
        keras.utils.set_random_seed(seed)
        model = localizer(cnn(4, 1, filters=16, norm="batch", input_shape=(SIDE, SIDE, 3), include_top=False))
        result = lab.train(model, recipe, train, test, preprocess)
        runs.append([row["val_iou"] for row in result.history])
    last = [run[-1] for run in runs]
    found = np.asarray(model(preprocess.from_images(images), training=False))
    others = {
        "linear model": overlap(boxes, linear(train_pictures, train_boxes).predict(pixels(images))).mean(),
        "always the mean box": overlap(boxes, np.broadcast_to(train_boxes.mean(0), boxes.shape)).mean(),
    }
    draw(lab, runs, others, images, boxes, found)

    lecture = np.mean(np.sum((boxes - found) ** 2, axis=1))
    ours = float(losses.get("mse")(boxes.astype("float32"), found))
    lab.fact("the loss is the sum of four squared differences", f"mean of the sum {lecture:.6f}, four times the mean "
             f"squared error that trains here {4 * ours:.6f}", abs(lecture - 4 * ours) < 1e-5 * lecture)  # fmt: skip
    said = f"IoU on unseen pictures: {spread(last, digits=2)}"
    first, (line, constant) = spread([run[0] for run in runs], digits=2), others.values()
    lab.effect("the squared loss on four numbers teaches a network to find the object",
               f"{said}, after the first epoch {first}, always the mean box {constant:.2f}",
               min(last) > constant + 0.2)  # fmt: skip
    lab.effect("a linear model of the pixels is too simple", f"{said}, linear {line:.2f}", line < np.mean(last) - 0.2)
    scores = evaluate(model, test, preprocess=preprocess)
    overlaps = overlap(boxes, found)
    off = np.mean((boxes - found) ** 2, axis=1)
    order = np.corrcoef(off.argsort().argsort(), overlaps.argsort().argsort())[0, 1]
    lab.effect("the smaller the loss, the better the answer", f"last seed: mean squared error {scores['loss']:.4f}, "
               f"{100 * np.mean(overlaps > 0.5):.0f} % of the boxes overlap by more than the usual 0.5; rank "
               f"correlation of a picture's loss and overlap {order:.2f}", order < -0.8)  # fmt: skip


def draw(lab, runs, others, images, boxes, found):
    """Draws the overlap over training, and pictures with true and predicted boxes."""
    with lab.figure("iou", "Overlap of predicted and true boxes of unseen pictures, each seed.", size=(6, 3.6)) as axes:
        panel = axes[0, 0]
        for run in runs:
            panel.plot(range(1, len(run) + 1), run, "o-", color=COLOURS[0], label="network" if run is runs[0] else None)
        for (name, value), colour in zip(others.items(), COLOURS[1:], strict=False):
            panel.axhline(value, color=colour, linestyle="--", label=name)
        panel.set(xlabel="epoch", ylabel="mean IoU", ylim=(0, 1))
        panel.legend()
    with lab.figure("boxes", "True boxes (white) and predicted ones (orange, dashed) on unseen pictures, not chosen.",
                    rows=2, columns=6, size=(1.6, 1.6)) as axes:  # fmt: skip
        for panel, image, true, guess in zip(axes.flat, images, boxes, found, strict=False):
            panel.imshow(image)
            panel.set_axis_off()
            for box, colour, style in ((true, "white", "-"), (guess, COLOURS[4], "--")):
                x, y, width, height = box * SIDE
                frame = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=colour, ls=style, linewidth=2)
                panel.add_patch(frame)
