"""Reads every sample of a source and says which ones cannot be used, and why."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import _decode
from dlkit.data.draws import plain


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found: how many samples it read, and each bad one as (file, class, reason)."""

    name: str
    count: int
    bad: tuple[tuple[str, str, str], ...] = ()
    indices: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every sample can be used."""
        return not self.bad

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.count} samples read, {len(self.bad)} cannot be used"]
        lines += [
            f"  {file} ({label}): {reason}" if label else f"  {file}: {reason}" for file, label, reason in self.bad
        ]
        return "\n".join(lines)

    def refuse(self) -> None:
        """Raises InputError with the list if there is a bad sample."""
        if self.bad:
            raise InputError(
                f"{self}\nMend or remove them, or leave exactly these out: on_bad='skip' / source.without_bad()"
            )


def check(source: Any, *, progress: bool = True, preprocess: Any = None, images: Any = None) -> Report:
    """Returns the report of a source; files are decoded in parallel at full reading speed.

    Args:
        source: a `Source`.
        progress: show a bar.
        preprocess, images: a `Preprocess` and the uint8 array (n, height, width, channels) that gets the pictures it
            makes of the samples.
    """
    if not source.store.encoded:
        return Report(source.name, len(source))
    good = _readable(source, progress, preprocess, images)
    refused = getattr(source.store, "refused", {})
    if refused:
        good &= ~np.isin(source.rows, list(refused))
    indices = tuple(np.flatnonzero(~good).tolist())
    bad = []
    for index in indices:
        label = source.classes[source.labels[index]] if source.classes and source.labels is not None else ""
        bad.append((source.identities[index], label, reason(source, index)))
    return Report(source.name, len(source), tuple(bad), indices)


@contextlib.contextmanager
def progress_bar(source: Any, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields the function that moves the bar of a check by so many samples."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not show) as bar:
        task = bar.add_task(f"checking {source.name}", total=len(source))
        yield lambda count: bar.advance(task, count)


def _readable(source: Any, progress: bool, preprocess: Any, images: Any) -> np.ndarray:
    @plain
    def attempt(index: Any) -> Any:
        content = source.one(index)
        if images is None:  # a value that only the decoder can make: an unused picture would not be decoded
            return index, source.store.digest(content), _decode.decode(content, 3)[0, 0, 0]
        return index, source.store.digest(content), preprocess.decode(content)

    dataset = tf.data.Dataset.range(len(source)).map(attempt, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    good = np.zeros(len(source), bool)
    with progress_bar(source, progress) as advance:
        for indices, digests, made in dataset.ignore_errors().batch(64).as_numpy_iterator():
            good[indices] = True
            if images is not None:
                images[indices] = made
            source.store.remember(source.rows[indices], digests)
            advance(len(indices))
    return good


def reason(source: Any, index: int) -> str:
    """Returns why a sample cannot be read, in one line."""
    row = int(source.rows[index])
    if row in getattr(source.store, "refused", {}):
        return source.store.refused[row]
    try:
        content = source.store.content(row)
    except OSError as error:
        return error.strerror or str(error)
    if not content:
        return "the file is empty"
    try:
        _decode.decode(tf.constant(content), 3)
    except tf.errors.OpError as error:
        return _shortened(error.message, content)
    return "could not be read the first time"


def _shortened(message: str, content: bytes) -> str:
    if "declares more than" in message:
        return f"declares more than {_decode.PIXEL_LIMIT} pixels (a decompression bomb)"
    if int(_decode.kind(tf.constant(content[:16]))) == 5:
        return f"not a picture: it begins with {content[:12]!r}"
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "it cannot be decoded")
    return f"damaged: {line[:160]}"
