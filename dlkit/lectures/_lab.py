"""What an experiment is given: its size, its data, a place to train in, and where its claims and figures go."""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlkit._errors import InputError
from dlkit.data import Preprocess, Source, from_folder
from dlkit.train import Recipe, Result, fit

# Okabe and Ito: colour-blind readers can tell them apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


@dataclass(frozen=True)
class Claim:
    """What a lecture says, what was measured, and whether both agree.

    Attributes:
        says: the lecture's claim, as a sentence.
        measured: the figures, with their spread and the number of seeds.
        agrees: the claim was reproduced.
        exact: it is a mathematical fact: true at any size, so a quick run checks it too.
    """

    says: str
    measured: str
    agrees: bool
    exact: bool


class Lab:
    """The bench of one experiment.

    Args:
        quick: seconds instead of minutes; effects are measured, and not judged.
        data: CIFAR-10 as a folder with train/ and test/, one subfolder per class; None where it is not there.
        scratch: a folder for training runs, thrown away afterwards.
    """

    def __init__(self, quick: bool, data: Path | None, scratch: Path) -> None:
        self.quick, self.data, self.scratch = quick, data, scratch
        self.claims: list[Claim] = []
        self.figures: dict[str, tuple[bytes, str]] = {}
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []

    def pick(self, quick: Any, full: Any) -> Any:
        """Returns the value for this size of run."""
        return quick if self.quick else full

    def seeds(self, full: int = 3) -> range:
        """Returns the seeds to repeat an experiment with; a quick run has one."""
        return range(self.pick(1, full))

    def fact(self, says: str, measured: str, agrees: bool) -> None:
        """Records a claim that is true or false at any size, such as an identity or a count."""
        self.claims.append(Claim(says, measured, bool(agrees), True))

    def effect(self, says: str, measured: str, agrees: bool) -> None:
        """Records a claim about training; a quick run is too small to judge it."""
        self.claims.append(Claim(says, measured, bool(agrees), False))

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table to the result."""
        self.tables.append((caption, list(header), [[str(cell) for cell in row] for row in rows]))

    @contextlib.contextmanager
    def figure(
        self, name: str, caption: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (5.2, 3.4)
    ) -> Iterator[np.ndarray]:
        """Yields the axes, an array (rows, columns), of a figure that is kept as NAME.png.

        Args:
            name: of the file.
            caption: one sentence that says what to see.
            rows, columns: of the axes.
            size: of each axes, inches.
        """
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel in axes.flat:
            panel.set_prop_cycle(color=COLOURS)
            panel.grid(alpha=0.25)
        yield axes
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
        self.figures[name] = (file.getvalue(), caption)

    def cifar(self, train: int | None = None, test: int | None = None, size: int = 32) -> tuple[Source, Source]:
        """Returns (train, test) sources of CIFAR-10, decoded in memory; the first `train` and `test` of a fixed mix.

        Args:
            train, test: how many pictures; None takes all.
            size: side in pixels; half of the 32 makes a network four times cheaper.

        Raises:
            InputError: the run was given no data, or the folder has no train/ and test/.
        """
        if self.data is None:
            raise InputError(
                "this experiment needs CIFAR-10 as a folder with train/ and test/: --data FOLDER, or --quick"
            )
        missing = [part for part in ("train", "test") if not (self.data / part).is_dir()]
        if missing:
            raise InputError(f"{self.data} must hold the folders train/ and test/; missing: {', '.join(missing)}")
        return _part(self.data, "train", train, size), _part(self.data, "test", test, size)

    def train(
        self, model: keras.Model, recipe: Recipe, train: Source, validation: Source | None, preprocess: Any
    ) -> Result:
        """Trains `model` with `fit` in a folder that is thrown away, in float32 on every processor."""
        folder, recipe = tempfile.mkdtemp(dir=self.scratch), dataclasses.replace(recipe, precision="float32")
        return fit(
            model, recipe, train, validation, preprocess=preprocess, run_dir=folder, deterministic=False,
            verbose=False,
        )  # fmt: skip


def _part(folder: Path, part: str, count: int | None, size: int) -> Source:
    source = from_folder(folder / part)
    order = np.random.default_rng(0).permutation(len(source))[:count]
    return source.subset(order, name=f"cifar10-{part}").cached("decoded", preprocess=Preprocess(size))


def spread(values: Sequence[float] | np.ndarray, unit: str = "", digits: int = 1) -> str:
    """Returns mean, standard deviation and number of values as text.

    >>> spread([90.0, 92.0], " %")
    '91.0 ± 1.4 % (n = 2)'
    """
    n = len(values)
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if n > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}{unit} (n = {n})"
