"""Convolution as a detector of patterns, with the lectures' kernels, sizes and counts, on a real photograph.

Paper: Fukushima 1980 and LeCun et al. 1989 (shared weights); the kernel of Sobel and Feldman 1968.
"""

import itertools
from typing import Any

import numpy as np
from keras import ops
from sklearn.datasets import load_sample_image

from dlkit.lectures import COLOURS, Lab
from dlkit.models import cnn, mlp

TITLE = "Convolution as a detector of patterns"
RUSSIAN = "Свёртки; свёрточные нейронные сети"
WHERE = "Lecture 001 (E. Sokolov), «Свёртки»; lecture 000 (E. Sokolov), sections 5.1 to 5.4"
FORMULA = """Out(x, y, t) = sum_c sum_i sum_j In(x + i, y + j, c) K(i, j, c, t) + b_t
parameters   T (C (2d + 1)^2 + 1)
size         L_out = floor((L_in + 2 P - dilation (K - 1) - 1) / S) + 1"""
DIAGONAL = np.eye(2)
AVERAGE = np.full((3, 3), 1 / 9)
KERNELS = {
    "Sobel, horizontal": np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]),
    "average": AVERAGE,
    "sharpening": np.array([[0, 0, 0], [0, 2, 0], [0, 0, 0]]) - AVERAGE,
}


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Returns the convolution of one channel without padding, as every convolutional layer computes it."""
    x, k = image[None, :, :, None].astype("float32"), kernel[:, :, None, None].astype("float32")
    return ops.convert_to_numpy(ops.conv(x, k, padding="valid"))[0, :, :, 0]


def lecture_examples(lab: Lab) -> None:
    inputs = [
        [[1, 1], [0, 1]],
        [[1, 1], [1, 1]],
        [[3, 0], [0, 3]],
        [[1, 2], [3, 0]],
        [[5, 0], [0, 5]],
        [[0, 2], [3, 0]],
    ]
    found = [int(convolve(np.array(x), DIAGONAL)[0, 0]) for x in inputs]
    says = "the more of the pattern there is, the larger the response: 2, 2, 6, 1, 10, 0 for the six 2 x 2 inputs"
    lab.fact(says, ", ".join(map(str, found)), found == [2, 2, 6, 1, 10, 0])
    low, high = np.zeros((4, 4)), np.zeros((4, 4))
    low[2:, 2:] = high[:2, :2] = DIAGONAL
    a, b = convolve(low, DIAGONAL), convolve(high, DIAGONAL)
    measured = f"diagonal below right {a.astype(int).tolist()}, above left {b.astype(int).tolist()}"
    agrees = a.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 2]] and b.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    lab.fact("the maximum does not change when the pattern moves (2 in both 4 x 4 inputs)", measured, agrees)


def sizes(lab: Lab) -> None:
    wrong, tried = [], 0
    for n, k, s, p, d in itertools.product((16, 17), (1, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)):
        if s > 1 and d > 1:
            continue  # TensorFlow has no convolution with both
        geometry: dict[str, Any] = {"kernel": k, "strides": s, "dilation": d}
        model = cnn(1, 1, 0, input_shape=(n, n, 3), padding=p, downsample="none", include_top=False, **geometry)
        tried += 1
        if model.output_shape[1] != (n + 2 * p - d * (k - 1) - 1) // s + 1:
            wrong.append((n, k, s, p, d))
    lab.fact("the formula of the output's size", f"{tried} layers built, {len(wrong)} differ", not wrong)
    counts = [cnn(1, 1, 0, filters=1000, input_shape=(n, n, 3), include_top=False).count_params() for n in (32, 224)]
    dense = mlp((), classes=1000, input_shape=(32, 32, 3)).count_params()
    measured = f"{counts[0]:,} for 32 x 32 and {counts[1]:,} for 224 x 224 pixels; fully connected, 32 x 32: {dense:,}"
    lab.fact("3 channels, 1000 filters of 3 x 3: 28,000 parameters, whatever the picture's size", measured,
             counts == [28_000, 28_000] and dense > 100 * counts[0])  # fmt: skip


def photograph(lab: Lab) -> None:
    grey = load_sample_image("china.jpg").astype("float64").mean(-1) / 255
    out = {name: convolve(grey, kernel) for name, kernel in KERNELS.items()}
    sobel = KERNELS["Sobel, horizontal"]
    worst = np.abs(out["Sobel, horizontal"] - sum(
        sobel[i, j] * grey[i : i + grey.shape[0] - 2, j : j + grey.shape[1] - 2] for i in range(3) for j in range(3)
    )).max()  # fmt: skip
    lab.fact("libraries compute the correlation: the kernel is not flipped", f"difference {worst:.0e}", worst < 1e-4)
    edges = {name: np.abs(np.diff(y, axis=1)).mean() for name, y in {"photograph": grey, **out}.items()}
    measured = ", ".join(f"{name} {edges[name]:.4f}" for name in ("average", "photograph", "sharpening"))
    agrees = edges["average"] < edges["photograph"] < edges["sharpening"]
    lab.fact("averaging blurs and sharpening sharpens (mean difference of neighbours)", measured, agrees)
    along = float(np.abs(convolve(np.tile(grey[:, :1], 9), sobel)).max())
    size = np.abs(out["Sobel, horizontal"]).mean()
    measured = f"mean size of the response {size:.3f}; {along:.0e} where brightness changes along y only"
    lab.fact("Sobel's kernel finds changes of brightness along x", measured, along < 1e-5)
    with lab.figure("kernels", "The lecture's kernels on a part of a photograph.", 1, 4, size=(2.4, 2.5)) as axes:
        for panel, (name, picture) in zip(axes.flat, {"photograph": grey, **out}.items(), strict=True):
            show(panel, picture[130:190, 150:220], name, (-2, 2) if "Sobel" in name else (0, 1))


def show(panel: Any, picture: np.ndarray, title: str, limits: tuple[float, float] = (0, 1)) -> None:
    panel.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    panel.set(title=title, xticks=(), yticks=())


def shift(lab: Lab) -> None:
    """Looks for a piece of the photograph in the photograph, and in a shifted window of it."""
    grey = load_sample_image("china.jpg").astype("float64").mean(-1) / 255
    grey = grey[60:, 90:]
    piece = grey[50:74, 60:84] - grey[50:74, 60:84].mean()
    places, largest = [], []
    caption = "The largest response marks the piece, wherever it lies."
    with lab.figure("shift", caption, 1, 3, size=(2.8, 2.6)) as axes:
        show(axes[0, 0], piece, "kernel, 24 x 24 pixels", (-0.4, 0.8))
        for panel, (down, right) in zip(axes[0, 1:], ((0, 0), (30, 40)), strict=True):
            window = grey[down : down + 110, right : right + 150]
            response = convolve(window, piece)
            y, x = np.unravel_index(response.argmax(), response.shape)
            places.append((int(y), int(x)))
            largest.append(float(response.max()))
            show(panel, window, f"largest response {largest[-1]:.1f}")
            panel.plot([x, x + 24, x + 24, x, x], [y, y, y + 24, y + 24, y], color=COLOURS[1], lw=2)
    says = "the response is largest where the pattern is, and its maximum does not change with a shift"
    measured = f"found at {places[0]} and, in a window moved by (30, 40), at {places[1]}; response {largest[0]:.3f}, "
    measured += f"{largest[1]:.3f}"
    lab.fact(says, measured, places == [(50, 60), (20, 20)] and np.ptp(largest) < 1e-3)


def experiment(lab: Lab) -> None:
    lecture_examples(lab)
    shift(lab)
    photograph(lab)
    sizes(lab)
