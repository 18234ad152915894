"""Ctrl-C and SIGTERM as a wish that the loop grants after the step."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM in a list instead of dying in the middle of a step; only in the main thread."""
    caught: list[int] = []
    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread: the signals are somebody else's
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda received, frame: caught.append(received))
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
