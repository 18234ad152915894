"""Progress with the time left, on standard error: a bar on a terminal, a line now and then elsewhere (logs, CI)."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0  # between two lines where there is no terminal

Update = Callable[[int, str], None]


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0, show: bool = True) -> Iterator[Update]:
    """Yields `update(done, text)`, which shows how much of `total` is done, the time left and `text`."""
    console = Console(stderr=True)
    if not show:
        yield lambda completed, text: None
    elif not console.is_terminal:
        yield _lines(title, total, done)
    else:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
            console=console, refresh_per_second=4,
        ) as progress:  # fmt: skip
            task = progress.add_task(title, total=total, completed=done, text="")
            yield lambda completed, text: progress.update(task, completed=completed, text=text)


def figures(history: list[dict[str, float]]) -> str:
    """Returns the last epoch's loss and metrics in one line."""
    shown = ("loss", "accuracy", "mae", "val_loss", "val_accuracy", "val_iou")
    return "  ".join(f"{name} {history[-1][name]:.4f}" for name in shown if history and name in history[-1])


def _lines(title: str, total: int, done: int) -> Update:
    start = last = time.monotonic()

    def update(completed: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if completed < total and now - last < LINE_SECONDS:
            return
        last = now
        left = (now - start) / max(1, completed - done) * (total - completed)
        print(f"{title}: {completed}/{total}, {left:.0f} s left  {text}".rstrip(), file=sys.stderr, flush=True)

    return update
