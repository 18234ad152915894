"""What an export is checked with: files or rows, their tensors from the evaluation pipeline, the expected outputs."""

import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.export._pictures import pictures

BATCH = 32  # rows per request in the checks, and per `predict` step in the reference
SAMPLES = 128  # of a source: the check takes seconds, not the length of an evaluation
MANY, ROOM = 2048, 64 * 2**20  # where accuracy may fall: a share of 0.2 points takes that many, within these bytes
NAMES = re.compile(r"((file|pixels)_\d{1,5}|inputs|targets|expected|features|tensors)\.npy")
LARGEST = 64 * 2**20  # bytes of all samples that an export carries; they are generated and few
FEW = 6  # requests of a single row
EXACT = {"main": 0.0, "probabilities": 1e-6}
# main: outputs, relative to the largest above 1; probabilities: the largest difference (the mean one where precision
# was given up); batch: the same row in another batch; softmax: probabilities against those of the own logits; accuracy:
# share of right answers that may be lost; agreement: share of equal best classes
LIMITS: dict[str, dict[str, float]] = {
    "float32": {"main": 1e-4, "probabilities": 1e-5, "batch": 1e-5, "softmax": 1e-6, "accuracy": 0.0, "agreement": 1.0},
    "bfloat16": {
        "main": 0.05,
        "probabilities": 0.02,
        "batch": 0.05,
        "softmax": 1e-6,
        "accuracy": 0.002,
        "agreement": 0.97,
    },
    "int8": {"main": 0.25, "probabilities": 0.05, "batch": 0.05, "softmax": 0.02, "accuracy": 0.005, "agreement": 0.95},
}


@dataclass
class Cases:
    """Inputs in the order in which they are sent.

    Args:
        files: encoded pictures; empty for a network that takes rows or tensors.
        pixels: the decoded pictures, uint8 (height, width, channels).
        tensors: what the evaluation pipeline feeds to the model.
        inputs: raw rows of a tabular network, before its preprocessing.
        targets: class numbers of labelled samples.
        expected: the outputs of the float32 model behind the evaluation pipeline.
        features: the pooled features, where the network shows them.
    """

    files: list[bytes] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    tensors: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    inputs: np.ndarray | None = None
    targets: np.ndarray | None = None
    expected: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def batch(self) -> int:
        """Rows per request."""
        return min(BATCH, len(self.tensors))

    def first(self, count: int) -> "Cases":
        """Returns the first `count` rows."""
        part = [
            None if value is None else value[:count]
            for value in (self.inputs, self.targets, self.expected, self.features)
        ]
        return Cases(self.files[:count], self.pixels[:count], self.tensors[:count], *part)

    def example(self, argument: str) -> tf.Tensor:
        """Returns one row for the signature input `argument`, for a warm-up request."""
        if argument == "image_bytes":
            return tf.constant(self.files[:1])
        if argument == "images":
            return tf.constant(self.pixels[0][None])
        if argument == "examples":
            return tf.constant([example(self.files[0])])
        return tf.constant((self.tensors if self.inputs is None or argument == "tensors" else self.inputs)[:1])

    def save(self, path: Path) -> None:
        """Writes what `load` needs to repeat the check elsewhere: inputs and expected outputs, not the tensors."""
        arrays = self.arrays()
        if self.files or self.inputs is not None:
            del arrays["tensors"]
        np.savez_compressed(path, **{name: value for name, value in arrays.items() if not name.startswith("pixels_")})  # type: ignore[arg-type]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns everything as named arrays, for the fresh process."""
        found = {f"file_{i}": np.frombuffer(file, np.uint8) for i, file in enumerate(self.files)}
        found |= {f"pixels_{i}": value for i, value in enumerate(self.pixels[:FEW])}
        optional = {
            "inputs": self.inputs,
            "targets": self.targets,
            "expected": self.expected,
            "features": self.features,
        }
        return (
            found | {"tensors": self.tensors} | {name: value for name, value in optional.items() if value is not None}
        )


def generated(preprocess: Any, shape: tuple[int | None, ...]) -> Cases:
    """Returns cases without data: pictures of every format, or rows from a fixed seed."""
    if hasattr(preprocess, "from_bytes"):
        return of_files(list(pictures(*preprocess.input_shape[:2]).values()), preprocess)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, *(32 if side is None else side for side in shape))).astype(np.float32)
    if preprocess is None:
        return Cases(tensors=rows)
    rows = rows * np.asarray(preprocess.std, np.float32) + np.asarray(preprocess.mean, np.float32)
    return of_rows(rows, preprocess)


def of_rows(rows: np.ndarray, preprocess: Any) -> Cases:
    """Returns cases of a table's rows, standardised by the evaluation pipeline's own object."""
    return Cases(inputs=rows, tensors=np.asarray(preprocess.from_rows(tf.constant(rows)), np.float32))


def of_files(files: list[bytes], preprocess: Any) -> Cases:
    """Returns cases of encoded pictures, preprocessed in Python by the evaluation pipeline's own object."""
    return Cases(
        files=files, pixels=_pixels(files, preprocess), tensors=preprocess.from_bytes(tf.constant(files)).numpy()
    )


def spread(source: Any, count: int) -> Any:
    """Returns at most `count` samples of the source, spread evenly over it."""
    return source.subset(np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(np.int64)))


def _pixels(files: list[bytes], preprocess: Any) -> list[np.ndarray]:
    return [preprocess.read(tf.constant(file)).numpy() for file in files[:FEW]]


def of_source(source: Any, preprocess: Any, labels: Sequence[str], many: bool = False) -> Cases:
    """Returns up to `SAMPLES` samples of a `Source`, spread evenly over it, with tensors from its evaluation pipeline.

    With `many`, up to `MANY` as far as their tensors have `ROOM`: for exports whose accuracy may fall a little.

    Raises:
        InputError: the source's classes are not the labels.
    """
    from dlkit.data import eval_pipeline

    check_classes(source, labels)
    count = SAMPLES
    if many:
        shape = getattr(preprocess, "input_shape", None) or (1,)
        count = max(SAMPLES, min(MANY, ROOM // (4 * int(np.prod([side or 1 for side in shape])))))
    part = spread(source, count)
    inputs = [batch.numpy() for batch, _ in eval_pipeline(part, preprocess, BATCH)]
    tensors = np.concatenate(inputs)
    targets = None if part.labels is None or not labels else np.asarray(part.labels)
    stored = part.take(np.arange(len(part))).numpy()
    if not hasattr(preprocess, "from_bytes"):
        return Cases(inputs=None if preprocess is None else stored, tensors=tensors, targets=targets)
    files = list(stored) if stored.dtype == object else [tf.io.encode_png(picture).numpy() for picture in stored]
    return Cases(files=files, pixels=_pixels(files, preprocess), tensors=tensors, targets=targets)


def joined(first: Cases, second: Cases) -> Cases:
    """Returns the rows of both; rows without a target get -1."""

    def both(name: str) -> np.ndarray | None:
        pair = getattr(first, name), getattr(second, name)
        return None if pair[0] is None or pair[1] is None else np.concatenate(pair)

    targets = None
    if second.targets is not None:
        targets = np.concatenate([np.full(len(first.tensors), -1), second.targets])
    pixels = [*first.pixels, *second.pixels]
    tensors = np.concatenate([first.tensors, second.tensors])
    return Cases([*first.files, *second.files], pixels, tensors, both("inputs"), targets)


def check_classes(source: Any, labels: Sequence[str]) -> None:
    """Raises InputError when the source's classes are not the labels."""
    if labels and source.classes is not None and tuple(source.classes) != tuple(labels):
        raise InputError(_different(source, labels))


def _different(source: Any, labels: Sequence[str]) -> str:
    theirs, ours = tuple(source.classes), tuple(labels)
    if sorted(theirs) == sorted(ours):
        orders = [", ".join(names[:5]) for names in (theirs, ours)]
        return f"{source.name!r} has the labels in another order: {orders[0]}, ... instead of {orders[1]}, ..."
    strange = [name for name in theirs if name not in ours] or [name for name in ours if name not in theirs]
    return (
        f"{source.name!r} has {len(theirs)} classes, the labels are {len(ours)}; only on one side: "
        f"{', '.join(strange[:5])}. The labels have to be the classes the model was trained with, in their order"
    )


def load(path: Path, preprocess: Any) -> Cases:
    """Returns the cases that an export carries, with tensors from today's evaluation pipeline."""
    stored = _stored(path)
    files = [stored[f"file_{i}"].tobytes() for i in range(len(stored)) if f"file_{i}" in stored]
    try:
        if files and hasattr(preprocess, "from_bytes"):
            cases = of_files(files, preprocess)
        elif "inputs" in stored and hasattr(preprocess, "from_rows"):
            cases = of_rows(stored["inputs"], preprocess)
        else:
            cases = Cases(tensors=stored.get("tensors", np.zeros(0, np.float32)))
    except tf.errors.OpError as error:
        raise InputError(f"{path} is damaged ({error.message}); export the model again") from error
    if "expected" not in stored or len(stored["expected"]) != len(cases.tensors):
        raise InputError(f"{path} does not hold one expected output per sample; export the model again")
    cases.expected, cases.features = stored["expected"], stored.get("features")
    return cases


def _stored(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file that may be somebody else's: plain numbers, no larger than their members, in bounds.

    Raises:
        InputError: a member of another kind or size.
    """
    found: dict[str, np.ndarray] = {}
    left = LARGEST
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                left -= info.file_size
                if not NAMES.fullmatch(info.filename) or left < 0:
                    raise InputError(f"{path}: {info.filename!r} of {info.file_size:,} bytes is no sample of an export")
                with archive.open(info) as member:
                    found[info.filename.removesuffix(".npy")] = _array(member, info, path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); export the model again") from error
    return found


def _array(member: Any, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """Reads one array after comparing what its header declares with the bytes that follow it."""
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise InputError(f"{path}: {info.filename} is in version {version} of NumPy's format")
    shape, fortran, dtype = read(member)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or fortran or size != info.file_size - member.tell():
        raise InputError(f"{path}: {info.filename} declares {dtype} {shape} and holds something else")
    return np.frombuffer(member.read(size), dtype).reshape(shape)


def example(content: bytes) -> bytes:
    """Returns the serialized tf.train.Example that the signature `tf_example` takes."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def in_batches(function: Callable[[np.ndarray], Any], rows: np.ndarray, batch: int) -> list[np.ndarray]:
    """Calls `function` on `batch` rows at a time and joins each of its outputs."""
    parts = [tf.nest.flatten(function(rows[i : i + batch])) for i in range(0, len(rows), batch)]
    return [np.concatenate([np.asarray(value) for value in column]) for column in zip(*parts, strict=True)]


def request(cases: Cases, manifest: dict[str, Any], exact: bool) -> dict[str, Any]:
    """Returns what the fresh process has to know besides the arrays."""
    precision = manifest["quantize"] or manifest["precision"]
    allowed = LIMITS[precision]
    near = EXACT if exact else {name: allowed[name] for name in ("main", "probabilities")}
    other = {"main": near["main"] + 1e-5, "probabilities": 1e-5 if exact else 2 * near["probabilities"]}
    return {
        "form": manifest["form"],
        "task": manifest["task"],
        "labels": manifest["labels"],
        "top": manifest["top"],
        "temperature": manifest["temperature"],
        "expects_probabilities": manifest["model"]["gives"] == "probabilities",
        "signatures": manifest["signatures"],
        "frozen": manifest["optimize"] == "freeze",
        "lossy": precision != "float32",
        "parameter_bytes": manifest["model"]["bytes"],
        "graph_bytes": 4_000_000,
        "limits": {
            "same_batch": near,
            "other_batch": other,
            **{k: allowed[k] for k in ("batch", "softmax", "accuracy", "agreement")},
        },
        "batch": cases.batch,
        "few": FEW,
        "files": len(cases.files),
        "samples": len(cases.tensors),
    }
