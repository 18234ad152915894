"""Where inputs lie: arrays, files or encoded strings, each readable by row inside a graph."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from dlkit.data.draws import plain


class Store(Protocol):
    """Inputs by row. `encoded` says whether `take` gives strings that still need the decoder."""

    encoded: bool

    @property
    def identities(self) -> Sequence[str]:
        """A name of each row that does not depend on its position."""

    def sizes(self, rows: np.ndarray) -> list[int]:
        """The bytes of each row."""

    def digests(self, rows: np.ndarray) -> Sequence[Any]:
        """What the content of each row adds to the fingerprint."""

    def take(self, rows: Any) -> Any:
        """Reads rows inside a graph; `rows` is an int64 vector."""

    def one(self, row: Any) -> Any:
        """Reads one row inside a graph; `row` is an int64 scalar."""

    def content(self, row: int) -> bytes:
        """Returns the encoded bytes of one row."""


class Arrays:
    """Rows of one array in memory: uint8 pictures (n, H, W, C) or a float32 table (n, d)."""

    encoded = False

    def __init__(self, values: np.ndarray, identities: Sequence[str] | None = None) -> None:
        self.values = np.ascontiguousarray(values)
        self._names = identities

    @functools.cached_property
    def identities(self) -> list[str]:
        """The names given, or digests of the content."""
        return self._contents if self._names is None else list(self._names)

    def sizes(self, rows: np.ndarray) -> list[int]:
        """The bytes of each row."""
        return [self.values[0].nbytes] * len(rows)

    def digests(self, rows: np.ndarray) -> Sequence[Any]:
        """Digests of the values."""
        return [self._contents[row] for row in rows]

    @functools.cached_property
    def _contents(self) -> list[str]:
        return [hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest() for row in self.values]

    @functools.cached_property
    def _tensor(self) -> Any:
        with tf.init_scope():
            return tf.constant(self.values)

    def take(self, rows: Any) -> Any:
        """Returns rows of the array."""
        return tf.gather(self._tensor, rows)

    def one(self, row: Any) -> Any:
        """Returns one row of the array."""
        return tf.gather(self._tensor, row)

    def content(self, row: int) -> bytes:
        """Returns the raw values of one row."""
        return self.values[row].tobytes()


class Encoded:
    """What files and strings share: a 64-bit digest per row, computed when a row is first read as a whole."""

    encoded = True

    @functools.cached_property
    def _digests(self) -> dict[int, str]:
        return {}

    def digest(self, content: Any) -> Any:
        """Returns FarmHash64 of an encoded string inside a graph: uint8 (8,)."""
        return tf.fingerprint(content[None])[0]

    def remember(self, rows: np.ndarray, digests: np.ndarray) -> None:
        """Keeps digests, so that the fingerprint need not read these rows again."""
        self._digests.update(zip(rows.tolist(), (digest.tobytes().hex() for digest in digests), strict=True))

    def one(self, row: Any) -> Any:
        """Reads one row inside a graph."""
        raise NotImplementedError

    def digests(self, rows: np.ndarray) -> Sequence[Any]:
        """The digest of each row; reads those that no check has read yet. A row that cannot be read has none."""
        refused = getattr(self, "refused", {})
        missing = [row for row in rows.tolist() if row not in self._digests and row not in refused]

        @plain
        def read(row: Any) -> Any:
            return row, self.digest(self.one(row))

        if missing:
            dataset = tf.data.Dataset.from_tensor_slices(np.asarray(missing, np.int64))
            dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
            for found, digests in dataset.ignore_errors().batch(256).as_numpy_iterator():
                self.remember(found, digests)
        return ["-" if row in refused else self._digests.get(row, "-") for row in rows.tolist()]


class Files(Encoded):
    """Encoded pictures in files, read when they are needed."""

    def __init__(self, paths: Sequence[str], identities: Sequence[str], refused: dict[int, str] | None = None) -> None:
        self.paths, self.identities = list(paths), list(identities)
        self.refused = refused or {}  # rows that may not be used whatever they hold, with the reason

    def sizes(self, rows: np.ndarray) -> list[int]:
        """The bytes of each file; -1 for one that has gone."""
        return [_size(self.paths[row]) for row in rows]

    @functools.cached_property
    def _tensor(self) -> Any:
        with tf.init_scope():
            return tf.constant([os.fsencode(path) for path in self.paths], tf.string)

    def take(self, rows: Any) -> Any:
        """Returns the content of files."""
        paths = tf.gather(self._tensor, rows)
        return tf.map_fn(tf.io.read_file, paths, fn_output_signature=tf.string)

    def one(self, row: Any) -> Any:
        """Returns the content of one file."""
        return tf.io.read_file(tf.gather(self._tensor, row))

    def content(self, row: int) -> bytes:
        """Returns one file's bytes."""
        return Path(self.paths[row]).read_bytes()


class Strings(Encoded):
    """Encoded pictures kept in memory as they came."""

    def __init__(self, contents: Sequence[bytes], identities: Sequence[str] | None = None) -> None:
        self.contents = list(contents)
        self._names = identities

    @functools.cached_property
    def identities(self) -> list[str]:
        """The names given, or digests of the content."""
        if self._names is not None:
            return list(self._names)
        return [hashlib.blake2b(content, digest_size=12).hexdigest() for content in self.contents]

    def sizes(self, rows: np.ndarray) -> list[int]:
        """The bytes of each string."""
        return [len(self.contents[row]) for row in rows]

    @functools.cached_property
    def _tensor(self) -> Any:
        with tf.init_scope():
            return tf.constant(self.contents, tf.string)

    def take(self, rows: Any) -> Any:
        """Returns encoded strings."""
        return tf.gather(self._tensor, rows)

    def one(self, row: Any) -> Any:
        """Returns one encoded string."""
        return tf.gather(self._tensor, row)

    def content(self, row: int) -> bytes:
        """Returns one string."""
        return self.contents[row]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1
