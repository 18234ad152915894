"""Sources that can only be read from front to back: a prepared split that is too large for memory."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import _decode, draws
from dlkit.data._check import Report
from dlkit.data._stores import Strings
from dlkit.data.sources import Source

_FILES, _BLOCK = 4, 16  # so many files are read at a time, so many records of each in turn


class Records:
    """The record files of a split of tensorflow-datasets: `files` holds (path, first record, number of records)."""

    encoded = True

    def __init__(self, features: Any, keys: tuple[str, str], files: Sequence[tuple[str, int, int]]) -> None:
        self.features, self.keys, self.files = features, keys, list(files)
        self._starts = np.cumsum([0, *(count for _, _, count in self.files)])

    def parsed(self, record: Any) -> tuple[Any, Any]:
        """Returns (encoded picture, target) of one record inside a graph."""
        import tensorflow_datasets as tfds

        image, label = self.keys
        example = self.features.deserialize_example(record, decoders={image: tfds.decode.SkipDecoding()})
        return example[image], example[label]

    def read(self, order: Any = None) -> tf.data.Dataset:
        """Returns (position, record) of every record, file by file; `order` int64 permutes the files and mixes them."""
        paths, skips, takes = (tf.constant(part) for part in zip(*self.files, strict=True))
        starts = tf.constant(self._starts[:-1], tf.int64)

        def one(file: Any) -> tf.data.Dataset:
            records = tf.data.TFRecordDataset(paths[file]).skip(tf.cast(skips[file], tf.int64))
            return records.take(tf.cast(takes[file], tf.int64)).enumerate(starts[file])

        if order is None:
            return tf.data.Dataset.range(len(self.files)).flat_map(draws.plain(one))
        files = tf.data.Dataset.from_tensor_slices(order)
        return files.interleave(draws.plain(one), cycle_length=_FILES, block_length=_BLOCK, num_parallel_calls=_FILES)

    def content(self, row: int) -> bytes:
        """Returns one encoded picture, by reading its file up to it."""
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        path, skip, _ = self.files[file]
        record = next(iter(tf.data.TFRecordDataset(path).skip(skip + row - int(self._starts[file])).take(1)))
        return self.parsed(record)[0].numpy()

    def take(self, rows: Any) -> Any:
        """Returns a few encoded pictures, each by reading its file up to it: not inside a graph."""
        return tf.constant([self.content(int(row)) for row in rows])

    def one(self, handle: Any) -> Any:
        """Returns the encoded picture of one record inside a graph."""
        return self.parsed(handle["record"])[0]

    def sizes(self, rows: np.ndarray) -> list[int]:
        """Unknown without reading: 0 each."""
        return [0] * len(rows)

    def digests(self, rows: np.ndarray) -> list[str]:
        """Unknown without reading."""
        return [""] * len(rows)

    @property
    def identities(self) -> list[str]:
        """The positions."""
        return [str(row) for row in range(int(self._starts[-1]))]


@dataclasses.dataclass(frozen=True, eq=False)
class Sequential(Source):
    """A source that is read from front to back, for splits beyond the memory budget; made by `from_tfds`.

    What still holds: the same seed gives the same samples and pixels in the same order, at any `num_parallel_calls`,
    batch size and number of workers; every sample appears once per epoch; a run resumes at any step. What does not:
    resuming reads the records before it in that epoch (without decoding them); the order is a permutation of the files
    and of each `buffer` records in turn instead of a full permutation; `split`, `balance`, class counts and
    `preview` need access to sample i and are refused (take slices: "train[:90%]", "train[90%:]"); files are checked
    only when `check` is called.
    """

    buffer: int = 2048

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hex digest of the data set's files (names, sizes, which records) and the class names."""
        digest = hashlib.blake2b(repr((self.task, self.classes, len(self))).encode(), digest_size=16)
        for path, skip, count in self.store.files:  # type: ignore[attr-defined]
            digest.update(f"{os.path.basename(path)}\0{tf.io.gfile.stat(path).length}\0{skip}\0{count}\n".encode())
        return digest.hexdigest()

    def passes(self, seed: int, start: int) -> tf.data.Dataset:
        """Returns the endless shuffled records from sample `start` on: {"index", "record"}."""
        files, count = len(self.store.files), len(self)  # type: ignore[attr-defined]

        def one(epoch: Any) -> tf.data.Dataset:
            place = tf.range(files, dtype=tf.int64)
            order = draws.permuted(seed, "files", place, files, tf.fill([files], epoch))
            blocks = self.store.read(order).batch(self.buffer).enumerate()  # type: ignore[attr-defined]
            return blocks.map(draws.plain(lambda block, records: mixed(epoch, block, records))).unbatch()

        def mixed(epoch: Any, block: Any, records: Any) -> Any:
            size = tf.shape(records[0], tf.int64)[0]
            place = draws.permuted(seed, "buffer", tf.range(size), size, tf.fill([size], epoch), tf.fill([size], block))
            return tf.nest.map_structure(lambda part: tf.gather(part, place), records)

        shuffled = (
            tf.data.Dataset.counter(start // count, dtype=tf.int64).flat_map(draws.plain(one)).skip(start % count)
        )
        return shuffled.map(_named)

    def in_order(self) -> tf.data.Dataset:
        """Returns every record once: {"index", "record"}."""
        return self.store.read().map(_named)  # type: ignore[attr-defined]

    def one(self, index: Any) -> Any:
        """Returns the encoded picture of one record; `index` is an element of `passes`."""
        return self.store.one(index)

    def targets(self, indices: Any) -> Any:
        """Returns the targets of records: one-hot float32 (n, classes) or values (n, t)."""
        dtype = self.store.features[self.store.keys[1]].tf_dtype  # type: ignore[attr-defined]
        shape = self.store.features[self.store.keys[1]].shape  # type: ignore[attr-defined]
        signature = tf.TensorSpec(shape, dtype)
        found = tf.map_fn(lambda record: self.store.parsed(record)[1], indices["record"], fn_output_signature=signature)  # type: ignore[attr-defined]
        if self.classes:
            return tf.one_hot(found, len(self.classes), dtype=tf.float32)
        return tf.reshape(tf.cast(found, tf.float32), [-1, int(np.prod(shape))])

    def take(self, indices: Any) -> Any:
        """See `Source.take`; not inside a graph."""
        return self.store.take(np.asarray(indices))

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> Source:
        """Returns these samples as a source in memory; reads the files once."""
        chosen = self._chosen(indices)
        wanted, found = set(chosen.tolist()), {}
        for element in self.in_order().take(int(chosen.max()) + 1 if len(chosen) else 0):
            if (row := int(element["index"])) in wanted:
                content, target = self.store.parsed(element["record"])  # type: ignore[attr-defined]
                found[row] = content.numpy(), target.numpy()
        store = Strings([found[row][0] for row in chosen.tolist()])
        targets = np.asarray([found[row][1] for row in chosen.tolist()])
        rows = np.arange(len(chosen), dtype=np.int64)
        if self.classes:
            return Source(
                name or self.name, self.task, store, classes=self.classes, labels=targets.astype(np.int64), rows=rows
            )
        values = targets.astype(np.float32).reshape(len(chosen), -1)
        return Source(name or self.name, self.task, store, values=values, rows=rows)

    def split(self, *fractions: float, seed: int = 0, stratify: bool = False) -> tuple[Source, ...]:
        """Refused: membership needs access to every sample."""
        raise InputError(
            f"{self!r} is read from front to back and cannot be split; make the parts with slices, such as "
            f'from_tfds(name, "train[:90%]") and from_tfds(name, "train[90%:]")'
        )

    def cached(self, kind: str = "encoded", *, preprocess: Any = None, budget: float = 4.0) -> Source:
        """Refused: it was too large for memory."""
        raise InputError(
            f"{self!r} is read from front to back because it exceeds the memory budget; raise that instead"
        )

    def _checked(self, progress: bool) -> Report:
        report = self.__dict__["_report"] = _checked(self, progress)
        return report


@draws.plain
def _named(index: Any, record: Any) -> dict[str, Any]:
    return {"index": index, "record": record}


def _checked(source: Sequential, progress: bool) -> Report:
    from dlkit.data._check import progress_bar

    @draws.plain
    def attempt(element: Any) -> Any:
        image = _decode.decode(source.one(element), 3)
        return element["index"], image[0, 0, 0]

    good = np.zeros(len(source), bool)
    attempts = source.in_order().map(attempt, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    with progress_bar(source, progress) as advance:
        for indices, _ in attempts.ignore_errors().batch(64).as_numpy_iterator():
            good[indices] = True
            advance(len(indices))
    bad = np.flatnonzero(~good)
    listed = tuple((f"record {row}", "", "it cannot be decoded") for row in bad)
    return Report(source.name, len(source), listed, tuple(bad.tolist()))
