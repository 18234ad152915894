"""ReGLU, GEGLU and SwiGLU against plain ReLU blocks with equally many weights, by the perplexity of real text.

Lecture: E. Sokolov, "Introduction to deep learning" (Sirius 2025), slides "Nonlinearity". Paper: N. Shazeer, "GLU
Variants Improve Transformer", 2020: there a transformer fills gaps in text; here a network of residual blocks says
the next character from the 16 before it, in the English documentation that comes with Python.
"""

import math
from pydoc_data.topics import topics

import keras
import numpy as np

from dlkit import layers
from dlkit.data import Standardize, from_arrays
from dlkit.lectures import COLOURS, Lab, spread
from dlkit.train import Recipe

TITLE = "Gated linear units"
RUSSIAN = "Нелинейность: ReGLU, GEGLU, SwiGLU"
WHERE = 'E. Sokolov, "Введение в глубинное обучение", Sirius 2025, slides "Нелинейность"'
FORMULA = """ReGLU(x)  = max(0, xW + b) * (xV + c)
GEGLU(x)  = GELU(xW + b) * (xV + c)
SwiGLU(x) = Swish_beta(xW + b) * (xV + c)"""
CONTEXT, WIDTH, HIDDEN = 16, 96, 384  # characters; values per block; hidden units of the plain block
GATES = {"GLU": "sigmoid", "ReGLU": "relu", "GEGLU": "gelu", "SwiGLU": "silu"}


def text(lab):
    """Returns (train, test) sources of next characters; the test text comes from other pages."""
    pages = [topics[name] for name in sorted(topics)]
    characters = sorted(set("".join(pages)))
    sources = []
    for part, count in ((pages[::10], lab.pick(500, 20_000)), (pages[1::2], lab.pick(1000, 100_000))):
        ids = np.array([characters.index(c) for c in "".join(part)[: 4 * count + CONTEXT]])
        windows = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)
        chosen = windows[np.random.default_rng(0).choice(len(windows), count, replace=False)]
        sources.append(from_arrays(chosen[:, :-1].astype("float32"), chosen[:, -1], classes=characters))
    return sources[1], sources[0]


def block(x, kind):
    """Returns x + W_2 f(x): two matrices of WIDTH x HIDDEN, or three of two thirds of it."""
    y = layers.RMSNorm()(x)
    if kind in GATES:
        return keras.layers.Add()([x, layers.GatedMLP(2 * HIDDEN // 3, activation=GATES[kind])(y)])
    y = layers.activation(kind.lower())(keras.layers.Dense(HIDDEN, use_bias=False)(y))
    return keras.layers.Add()([x, keras.layers.Dense(WIDTH, use_bias=False)(y)])


def network(kind, characters):
    """Returns the network: characters to vectors, two blocks, scores of the next character."""
    inputs = keras.Input((CONTEXT,))
    x = keras.layers.Flatten()(keras.layers.Embedding(characters, 16)(inputs))
    x = keras.layers.Dense(WIDTH)(x)
    for _ in range(2):
        x = block(x, kind)
    return keras.Model(inputs, keras.layers.Dense(characters, dtype="float32")(layers.RMSNorm()(x)))


def formulas(lab):
    """Compares the three layers with their formulas in NumPy, 64 bits."""
    random = np.random.default_rng(0)
    x, (w, v), (b, c) = random.normal(size=(8, 5)), random.normal(size=(2, 5, 4)), random.normal(size=(2, 4))
    z = x @ w + b
    gelu = z / 2 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    worst = 0.0
    for layer, gate in ((layers.ReGLU(4), np.maximum(z, 0)), (layers.GEGLU(4), gelu),
                        (layers.SwiGLU(4, beta=1.5), z / (1 + np.exp(-1.5 * z)))):  # fmt: skip
        layer.build(x.shape)
        layer.set_weights([w, v, b, c])
        worst = max(worst, np.max(np.abs(np.asarray(layer(x.astype("float32"))) - gate * (x @ v + c))))
    lab.fact("ReGLU, GEGLU and SwiGLU are these products", f"largest difference to NumPy {worst:.1g}", worst < 1e-5)


def experiment(lab: Lab) -> None:
    """Trains the same network with each kind of block on the same text."""
    formulas(lab)
    train, test = text(lab)
    characters, kinds = len(train.classes), lab.pick(("ReLU", "ReGLU", "SwiGLU"), ("ReLU", "GELU", *GATES))
    same = Standardize((0.0,) * CONTEXT, (1.0,) * CONTEXT)  # the characters' numbers as they are
    recipe = Recipe(epochs=lab.pick(1, 3), batch=250, optimizer="adam", peak_lr=3e-3, weight_decay=0.0)
    curves: dict = {kind: [] for kind in kinds}
    seconds: dict = {kind: [] for kind in kinds}
    for seed in lab.seeds(3):
        for kind in kinds:
            keras.utils.set_random_seed(seed)
            model = network(kind, characters)
            result = lab.train(model, recipe, train, test, same)
            curves[kind].append([math.exp(row["val_loss"]) for row in result.history])
            seconds[kind].append(min(row["seconds"] for row in result.history))
    weights = {kind: network(kind, characters).count_params() for kind in kinds}
    counts = ", ".join(f"{kind} {count:,}" for kind, count in weights.items())
    says = "a gated block of two thirds of the hidden units has the plain block's number of weights"
    lab.fact(says, counts, len(set(weights.values())) == 1)

    last = {kind: [run[-1] for run in runs] for kind, runs in curves.items()}
    said = {kind: spread(values, digits=3) for kind, values in last.items()}
    with lab.figure("gated", "Perplexity of unseen text (lower is better): each seed, and a stroke at the mean. "
                    "Right: mean over the epochs.", columns=2) as axes:  # fmt: skip
        left, right = axes[0]
        for place, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
            left.plot(np.mean(last[kind]), place, "|", color=colour, markersize=22, markeredgewidth=3)
            left.plot(last[kind], [place] * len(last[kind]), "o", color=colour)
            right.plot(range(1, recipe.epochs + 1), np.mean(curves[kind], axis=0), "o-", color=colour, label=kind)
        left.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5))
        left.set_xlabel("perplexity of the next character")
        right.set(xlabel="epoch", ylabel="perplexity", xticks=range(1, recipe.epochs + 1))
        right.legend(fontsize=9)
    for kind in [k for k in kinds if k in ("ReGLU", "GEGLU", "SwiGLU")]:
        lab.effect(f"{kind} gives a better perplexity than the plain ReLU block",
                   f"test perplexity after {recipe.epochs} epochs: {kind} {said[kind]}, ReLU {said['ReLU']}",
                   np.mean(last[kind]) < np.mean(last["ReLU"]))  # fmt: skip
    fastest = {kind: min(values) for kind, values in seconds.items()}
    lab.effect("they have no apparent computational drawbacks (at most a quarter more time than the plain block)",
               "fastest epoch: " + ", ".join(f"{kind} {value:.2f} s" for kind, value in fastest.items()),
               max(fastest[kind] for kind in GATES if kind in fastest) < 1.25 * fastest["ReLU"])  # fmt: skip
