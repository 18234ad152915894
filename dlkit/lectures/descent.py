"""Gradient descent and its relatives on the lecture's bowl; the surface that a network's loss is (Li et al. 2018)."""

import keras
import numpy as np

from dlkit.data import Preprocess, Standardize, from_arrays, load
from dlkit.lectures import COLOURS, Lab, concave, plane, spread
from dlkit.models import resnet_cifar
from dlkit.train import Recipe, optimizers

TITLE = "Gradient descent and its relatives"
RUSSIAN = "Градиентный спуск; нормализация данных; модификации градиентного спуска"
WHERE = "Lecture 003 (M. Gushchin), «Градиентный спуск» to «Adam»; 001 (E. Sokolov), «Локальные минимумы»"
FORMULA = """L(w) = 0.1 w1^2 + 2 w2^2;  descent w <- w - eta g,  g = grad L;  momentum h <- beta h + g,  w <- w - eta h
AdaGrad   s <- s + g^2,  w <- w - eta g / sqrt(s)         RMSprop   s <- 0.9 s + 0.1 g^2,  w <- w - eta g / sqrt(s)
Adam      h <- 0.9 h + 0.1 g,  s <- 0.999 s + 0.001 g^2,  w <- w - eta h / (1 - 0.9^t) / sqrt(s / (1 - 0.999^t))"""
CURVATURE, START = np.array([0.2, 4.0]), np.array([-5.0, 2.0])  # the gradient of L is CURVATURE * w
RATES = {"sgd": 0.4, "momentum": 0.1, "adagrad": 1.0, "rmsprop": 0.1, "adam": 0.3}
RULES = {  # gradient, both states, step's number, beta -> new states, direction
    "sgd": lambda g, h, s, t, beta: (h, s, g),
    "momentum": lambda g, h, s, t, beta: (h := beta * h + g, s, h),
    "adagrad": lambda g, h, s, t, beta: (h, s := s + g**2, g / np.sqrt(s)),
    "rmsprop": lambda g, h, s, t, beta: (h, s := 0.9 * s + 0.1 * g**2, g / np.sqrt(s)),
    "adam": lambda g, h, s, t, beta: (
        (h := 0.9 * h + 0.1 * g), (s := 0.999 * s + 0.001 * g**2), h / (1 - 0.9**t) / np.sqrt(s / (1 - 0.999**t))
    ),
}  # fmt: skip


def by_formula(name: str, eta: float, steps: int, beta: float = 0.9) -> np.ndarray:
    """Returns the path in float64; the square sum of AdaGrad starts at 0.1, as in Keras."""
    path, h, s = [START], np.zeros(2), np.full(2, 0.1 if name == "adagrad" else 0.0)
    for t in range(1, steps + 1):
        h, s, direction = RULES[name](CURVATURE * path[-1], h, s, t, beta)
        path.append(path[-1] - eta * direction)
    return np.array(path)


def by_optimizer(name: str, eta: float, steps: int) -> np.ndarray:
    path, w = [START], keras.Variable(START.astype("float32"))
    optimizer = optimizers.get(name, eta, [w], momentum=0.0 if name == "rmsprop" else 0.9)
    for _ in range(steps):
        optimizer.apply([CURVATURE.astype("float32") * w], [w])
        path.append(w.numpy())
    return np.array(path)


def arrival(path: np.ndarray) -> float:
    """Returns the step from which on L stays below 0.001; infinity if it does not."""
    high = np.flatnonzero((CURVATURE * path**2).sum(1) / 2 >= 1e-3)
    return np.inf if high[-1] == len(path) - 1 else int(high[-1]) + 1


def on_the_bowl(lab: Lab) -> None:
    steps = lab.pick(20, 100)
    methods = {name: by_optimizer(name, rate, steps) for name, rate in RATES.items()}
    worst = max(np.abs(path - by_formula(name, RATES[name], steps)).max() for name, path in methods.items())
    measured = f"largest distance of dlkit's optimizers from the formulas in {steps} steps: {worst:.1e}"
    lab.fact("the formulas of descent, momentum, AdaGrad, RMSprop and Adam", measured, worst < 1e-3)
    sizes = {f"eta {eta}": by_formula("sgd", eta, 2500) for eta in (0.01, 0.4, 0.49, 0.51)}
    taken = {name: arrival(path) for name, path in sizes.items()}
    agrees = taken["eta 0.51"] == np.inf and taken["eta 0.01"] > 20 * taken["eta 0.4"]
    measured = "steps needed (inf: never): " + ", ".join(f"{name} {count}" for name, count in taken.items())
    lab.fact("too large a step diverges, too small a one takes long", measured, agrees)
    demo = {f"beta {beta}": by_formula("momentum", 0.02, 2500, beta) for beta in (0.0, 0.83, 0.99)}
    turns = [int((np.diff(np.sign(path[:100, 1])) != 0).sum()) for path in demo.values()]
    taken = {name: arrival(path) for name, path in demo.items()}
    measured = "steps needed at eta 0.02: " + ", ".join(f"{name} {count}" for name, count in taken.items())
    plain, heavy = (arrival(by_formula("momentum", 0.6, 300, beta)) for beta in (0.0, 0.83))
    measured += f"; w2 crosses 0 {turns} times in 100 steps; at eta 0.6 {plain} steps for beta 0, {heavy} for 0.83"
    agrees = taken["beta 0.83"] < taken["beta 0.0"] and turns[0] == 0 < turns[1] and heavy < plain == np.inf
    lab.fact("momentum converges faster, allows larger steps and oscillates by itself", measured, agrees)
    groups = {"methods of the lecture": methods, "descent: size of the step": sizes, "momentum, step 0.02": demo}
    caption = "Paths on L from (-5, 2): the methods; descent with several steps; the lecture's momentum demo."
    with lab.figure("paths", caption, 1, 3, size=(3.5, 2.9)) as axes:
        x, y = np.meshgrid(np.linspace(-6, 4, 60), np.linspace(-3, 3, 60))
        for panel, (title, group), count in zip(axes.flat, groups.items(), (60, 16, 60), strict=True):
            panel.contour(x, y, 0.1 * x**2 + 2 * y**2, levels=12, colors=COLOURS[7], linewidths=0.5)
            for name, path in group.items():
                panel.plot(*path[:count].T, ".-", ms=3, lw=1, label=name)
            panel.set(title=title, xlabel="$w_1$", ylabel="$w_2$", xlim=(-6, 4), ylim=(-3, 3))
            panel.legend(fontsize=6.5, loc="lower right")


def scales_and_starts(lab: Lab) -> None:
    rng, left = np.random.default_rng(0), []
    raw = np.stack([rng.normal(1000, 300, 500), rng.normal(1, 0.3, 500)], 1).astype("float32")
    y = 0.01 * raw[:, 0] + 10 * raw[:, 1] + rng.normal(0, 0.1, 500)
    for features in (raw, Standardize.of(from_arrays(raw, y[:, None])).from_rows(raw)):
        x = np.c_[np.ones(500), features]
        best, hessian = np.linalg.lstsq(x, y, rcond=None)[0], 2 * x.T @ x / 500
        step = np.eye(3) - hessian / np.linalg.norm(hessian, 2)  # from w = 0: w_t - best = -step^t best
        left.append([np.mean((x @ np.linalg.matrix_power(step, t) @ best) ** 2) for t in (10, 1000)])
    measured = "squared error above the optimum after 10 and 1000 steps: raw {:.0e}, {:.0e}, normalised {:.0e}, {:.0e}"
    lab.fact("normalised features make descent faster", measured.format(*left[0], *left[1]), left[1][0] < left[0][1])
    w = np.linspace(-2, 2, 41)
    for _ in range(1000):
        w = w - 0.02 * (4 * w**3 - 4 * w + 0.25)
    ends = np.unique(w.round(2)).tolist()
    lab.fact("descent finds only local minima", f"41 starts on w^4 - 2 w^2 + w/4 end at {ends}", len(ends) == 2)


def landscape(lab: Lab, kind: str, seed: int) -> np.ndarray:
    (train, _), preprocess = load("digits"), Preprocess(8, channels=1, mean=0.3, std=0.37)
    keras.utils.set_random_seed(seed)
    depth, width = lab.pick((8, 0.25), (32, 0.5))
    model = resnet_cifar(depth, input_shape=(8, 8, 1), residual=kind == "residual", width=width)
    lab.train(model, Recipe(epochs=lab.pick(1, 8), batch=lab.pick(512, 64)), train, None, preprocess)
    return plane(
        model, preprocess.from_images(train.take(np.arange(200))), np.asarray(train.labels)[:200], lab.pick(5, 21), seed
    )


def experiment(lab: Lab) -> None:
    on_the_bowl(lab)
    scales_and_starts(lab)
    grids = {kind: [landscape(lab, kind, seed) for seed in lab.seeds(2)] for kind in ("plain", "residual")}
    bent = {kind: [concave(grid) for grid in found] for kind, found in grids.items()}
    measured = ", ".join(f"{kind} {spread(share, ' %')}" for kind, share in bent.items())
    says = "shortcuts smooth the loss (share of the plane where it is not convex)"
    lab.effect(says, measured, max(bent["residual"]) < min(bent["plain"]))
    caption = "Loss around the trained weights on two random directions (seed 0); white: ln 10, the loss of a guess."
    with lab.figure("landscape", caption, 1, 2, size=(4.4, 3.8)) as axes:
        for panel, (kind, found) in zip(axes.flat, grids.items(), strict=True):
            where = {"extent": (-1, 1, -1, 1)}
            picture = panel.contourf(np.log10(found[0]), levels=np.linspace(-2, 2, 21), extend="both", **where)
            panel.contour(found[0], levels=[np.log(10)], colors="white", **where)
            panel.set(title=f"{kind} network", xlabel="first direction", ylabel="second direction")
            panel.figure.colorbar(picture, ax=panel, label="log10 of the loss")
