"""Data sets with random access: what sample i is, what its target is, and which data this was."""

import dataclasses
import functools
import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data._check import Report, check
from dlkit.data._stores import Arrays, Store, Strings

TASKS = ("classification", "regression", "box")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set whose sample i can be read directly, in Python and inside a TensorFlow graph.

    Made by `from_arrays`, `from_folder`, `from_tfds` or `load`, not by hand.

    Args:
        name: what reports call it.
        task: "classification" (int class ids), "regression" (float targets) or "box" (boxes, with class ids or
            without).
        store: where the inputs lie; `store.take(rows)` reads them in the graph.
        classes: the class names in the order of the ids, None where there are none.
        labels: int64 (n,) class ids, or None.
        values: float32 (n, t) targets of a regression, or None.
        boxes: float32 (n, 4) as (x, y, width, height) in fractions of the picture, or None.
        rows: int64 (n,), which rows of the store belong to this source (a split holds some of them).
        skipped: what was left out because it could not be read, as (file, reason).
    """

    name: str
    task: str
    store: Store
    classes: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    values: np.ndarray | None = None
    boxes: np.ndarray | None = None
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"Source({self.name!r}, {self.task}, {len(self)} samples{classes})"

    # identity -------------------------------------------------------------------------------------

    @functools.cached_property
    def identities(self) -> list[str]:
        """What names each sample whatever its position: the path below the folder, or a digest of the content."""
        names = self.store.identities
        return [names[row] for row in self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hex digest of the samples, their order, their targets and the class names; stored with a run.

        Everything counts with its content: the same files on another machine have the same fingerprint, a replaced
        picture changes it. Files are read for it once, by the check before a run where there is one.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.task, self.classes, len(self))).encode())
        for identity, content in zip(self.identities, self.store.digests(self.rows), strict=True):
            digest.update(f"{identity}\0{content}\n".encode("utf-8", "surrogateescape"))
        for targets in (self.labels, self.values, self.boxes):
            digest.update(b"-" if targets is None else np.ascontiguousarray(targets).tobytes())
        return digest.hexdigest()

    # parts ----------------------------------------------------------------------------------------

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> "Source":
        """Returns the source of these samples, in this order.

        Raises:
            InputError: an index that the source lacks, or what is no index, such as a mask.
        """
        chosen = self._chosen(indices)

        def pick(targets: np.ndarray | None) -> np.ndarray | None:
            return None if targets is None else targets[chosen]

        part = dataclasses.replace(
            self, rows=self.rows[chosen], labels=pick(self.labels), values=pick(self.values), boxes=pick(self.boxes),
            name=name or self.name,
        )  # fmt: skip
        if (report := self.__dict__.get("_report")) and report.ok:
            part.__dict__["_report"] = Report(part.name, len(part))
        return part

    def _chosen(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        chosen = np.asarray(indices)
        if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
            raise InputError(
                f"samples are chosen by whole numbers, got {chosen.dtype.name}; of a mask take np.flatnonzero(mask)"
            )
        chosen = chosen.astype(np.int64).reshape(-1)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise InputError(f"index {wrong[0]} is not a sample of {self!r}: 0 to {len(self) - 1} are")
        return chosen

    def split(self, *fractions: float, seed: int = 0, stratify: bool = False) -> tuple["Source", ...]:
        """Returns disjoint parts in the given proportions, e.g. `train, validation = source.split(0.9, 0.1)`.

        The part of a sample is a function of (seed, its identity) alone: a hash of the file's path below the folder,
        or of the content. Neither the order of the files nor files added later move a sample from one part to
        another, and copies of one array row stay together. The sizes therefore match the fractions only on average (a
        binomial draw); `stratify=True` instead gives every class its exact share, at the price that an added file may
        move a neighbour. A part that would be empty receives the sample nearest to it.

        Args:
            fractions: positive, summing to at most 1; what is left over is dropped.
            seed: another seed, other parts.
            stratify: keep the class proportions exactly (classification only).

        Raises:
            InputError: fractions that sum to more than 1, more parts than samples, or stratify without classes.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise InputError(f"fractions {fractions} must be positive and sum to at most 1, e.g. split(0.8, 0.1, 0.1)")
        if len(fractions) > len(self):
            raise InputError(f"{self!r} cannot be split into {len(fractions)} parts: too few samples")
        if stratify and self.labels is None:
            raise InputError(f"stratify=True needs class labels; {self!r} has none")
        place = np.array([_hash_to_unit(seed, identity) for identity in self.identities])
        if stratify:
            place = _rank_within(place, self.labels)  # type: ignore[arg-type]
        edges = np.cumsum([0.0, *fractions])
        edges[-1] += 1e-9
        part = np.searchsorted(edges, place, side="right") - 1
        for missing in sorted(set(range(len(fractions))) - set(part.tolist())):
            counts = np.bincount(part, minlength=len(fractions) + 1)
            movable = np.flatnonzero((counts[part] > 1) | (part == len(fractions)))
            middle = (edges[missing] + edges[missing + 1]) / 2
            part[movable[np.argmin(np.abs(place[movable] - middle))]] = missing
        return tuple(self.subset(np.flatnonzero(part == i)) for i in range(len(fractions)))

    def as_task(self, task: str) -> "Source":
        """Returns the same samples with targets of another task that they carry, e.g. the class ids of boxes."""
        if task not in TASKS:
            raise InputError(f"task={task!r}; allowed: {', '.join(TASKS)}")
        if task == "classification" and self.labels is not None:
            return dataclasses.replace(self, task=task, boxes=None)
        if task == "box" and self.boxes is not None:
            return dataclasses.replace(self, task=task, labels=None, classes=None)
        raise InputError(f"{self!r} carries no targets for task {task!r}")

    # classes --------------------------------------------------------------------------------------

    @property
    def class_counts(self) -> dict[str, int]:
        """How many samples each class has."""
        if self.labels is None or self.classes is None:
            raise InputError(f"{self!r} has no classes to count")
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @property
    def class_weights(self) -> dict[int, float]:
        """Weights n / (classes * count) that make every class count the same in a loss; 0 for an empty class."""
        counts = list(self.class_counts.values())
        return {i: len(self) / (len(counts) * count) if count else 0.0 for i, count in enumerate(counts)}

    # access ---------------------------------------------------------------------------------------

    def take(self, indices: Any) -> Any:
        """Returns the stored inputs inside a graph: uint8 pictures, encoded strings, or float vectors."""
        return self.store.take(tf.gather(self._constant("rows"), indices))

    def one(self, index: Any) -> Any:
        """Returns the stored input of one sample inside a graph; `index` is a scalar."""
        return self.store.one(tf.gather(self._constant("rows"), index))

    def targets(self, indices: Any) -> Any:
        """Returns the targets of these samples inside a graph.

        One-hot float32 (n, classes), values (n, t), boxes (n, 4), or {"label": one-hot, "box": boxes} where a box
        source has classes too.
        """
        if self.task == "regression":
            return tf.gather(self._constant("values"), indices)
        if self.task == "box" and self.labels is None:
            return tf.gather(self._constant("boxes"), indices)
        one_hot = tf.one_hot(tf.gather(self._constant("labels"), indices), len(self.classes or ()), dtype=tf.float32)
        if self.task == "classification":
            return one_hot
        return {"label": one_hot, "box": tf.gather(self._constant("boxes"), indices)}

    def boxes_of(self, indices: Any) -> Any:
        """Returns the boxes of these samples inside a graph, float32 (n, 4), or None for a source without boxes."""
        return None if self.boxes is None else tf.gather(self._constant("boxes"), indices)

    def _constant(self, field: str) -> Any:
        with tf.init_scope():
            cache = self.__dict__.setdefault("_constants", {})
            if field not in cache:
                cache[field] = tf.constant(getattr(self, field))
            return cache[field]

    def cached(self, kind: str = "encoded", *, preprocess: Any = None, budget: float = 4.0) -> "Source":
        """Returns the source with its pictures in memory, so that later epochs read no file.

        Args:
            kind: "encoded" keeps the files' bytes (small, still decoded each time); "decoded" keeps uint8 pictures
                resized by `preprocess` (fastest; a `RandomResizedCrop` then crops what was resized).
            preprocess: for "decoded".
            budget: the memory that may be used, GiB.

        Raises:
            InputError: the pictures need more than the budget (nothing was read then), or are in memory already.
        """
        if kind not in ("encoded", "decoded") or (kind == "decoded") != (preprocess is not None):
            raise InputError(
                f"kind={kind!r} with preprocess={preprocess!r}; allowed: 'encoded', or 'decoded' with a Preprocess"
            )
        if not self.store.encoded:
            raise InputError(f"{self!r} is in memory already")
        shape = [] if preprocess is None else [len(self), *preprocess.input_shape]
        needed = sum(self.store.sizes(self.rows)) if kind == "encoded" else math.prod(shape)
        if needed > budget * 2**30:
            raise InputError(f"caching {self!r} {kind} needs {needed / 2**30:.2f} GiB, the budget is {budget} GiB")
        store: Store
        if kind == "encoded":
            self.check().refuse()
            store = Strings([self.store.content(int(row)) for row in self.rows], self.identities)
        else:  # one reading for the check, the digests and the pictures
            images = np.empty(shape, np.uint8)
            self.__dict__["_report"] = check(self, preprocess=preprocess, images=images)
            self.check().refuse()
            store = Arrays(images, self.identities)
        copy = dataclasses.replace(self, store=store, rows=np.arange(len(self), dtype=np.int64))
        copy.__dict__["_report"] = Report(self.name, len(self))
        return copy

    # checking -------------------------------------------------------------------------------------

    def check(self, *, progress: bool = True) -> Report:
        """Reads and decodes every sample and returns a `Report` of those that cannot be used, with the reason.

        The report is kept with the source, so that pipelines over it do not read everything again.
        """
        return self.__dict__.setdefault("_report", None) or self._checked(progress)

    def _checked(self, progress: bool) -> Report:
        report = self.__dict__["_report"] = check(self, progress=progress)
        return report

    def without_bad(self, *, progress: bool = True) -> "Source":
        """Returns the source without the samples that `check` finds bad; `skipped` lists them."""
        report = self.check(progress=progress)
        if report.ok:
            return self
        if len(report.bad) == len(self):
            raise InputError(f"every sample is bad, nothing is left to train on. {report}")
        good = np.setdiff1d(np.arange(len(self)), report.indices)
        warnings.warn(
            f"{len(report.bad)} of {len(self)} samples of {self.name} are skipped: they cannot be read", stacklevel=3
        )
        rest = dataclasses.replace(self.subset(good), skipped=tuple((file, reason) for file, _, reason in report.bad))
        rest.__dict__["_report"] = Report(rest.name, len(rest))
        return rest


def _hash_to_unit(seed: int, identity: str) -> float:
    content = f"{seed}\0{identity}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(content, digest_size=6).digest(), "little") / 2**48


def _rank_within(place: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns for each sample the middle of its rank within its class, in (0, 1)."""
    result = np.empty_like(place)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = np.empty(len(members))
        ranks[np.argsort(place[members], kind="stable")] = np.arange(len(members))
        result[members] = (ranks + 0.5) / len(members)
    return result


def refuse_twice(classes: Sequence[str]) -> None:
    """Raises InputError for a class name that stands twice: ids could not be told apart by it."""
    if twice := sorted({str(name) for name in classes if list(classes).count(name) > 1}):
        raise InputError(f"classes name {', '.join(map(repr, twice))} twice; each class needs a name of its own")


def valid_boxes(boxes: Any, count: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Returns boxes as float32 (count, 4), or raises InputError naming the first one that leaves its picture."""
    boxes = np.asarray(boxes, np.float32)
    if boxes.shape != (count, 4):
        raise InputError(f"boxes of shape {boxes.shape}: ({count}, 4) as (x, y, width, height) is needed")
    with np.errstate(invalid="ignore"):
        inside = (boxes >= 0).all(1) & (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-5).all(1)
    bad = np.flatnonzero(~inside)
    if len(bad):
        which = names[bad[0]] if names is not None else f"sample {bad[0]}"
        raise InputError(
            f"box {boxes[bad[0]].tolist()} of {which} ({len(bad)} such) leaves the picture; "
            f"(x, y, width, height) are fractions of the picture, 0..1, with x + width <= 1 and y + height <= 1"
        )
    return boxes
