"""Sources of tensorflow-datasets; prepared ones and own builders work offline."""

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dlkit._errors import InputError, unknown
from dlkit.data._sequential import Records, Sequential
from dlkit.data._stores import Arrays, Strings
from dlkit.data.sources import Source

BUILTIN = ("digits",)


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> tuple[Source, Source]:
    """Returns the (train, test) sources of a data set that ships with dlkit: "digits".

    Prepared on first use, offline, into the folder of tensorflow-datasets.

    Args:
        name: "digits", 1,797 handwritten digits of 8x8 pixels.
        data_dir: where to keep it; default: the variable TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        InputError: an unknown name.
    """
    if name not in BUILTIN:
        raise unknown("data set", name, BUILTIN)
    return from_tfds(name, "train", data_dir=data_dir), from_tfds(name, "test", data_dir=data_dir)


def from_tfds(
    name: Any,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    budget: float = 8.0,
) -> Source:
    """Returns the source of one split of a data set of tensorflow-datasets.

    Args:
        name: a registered name such as "cifar10" or "digits", a folder that holds a prepared data set, or a builder
            (your own `GeneratorBasedBuilder`, `tfds.ImageFolder(path)`).
        split: "train", "test", or a slice such as "train[:10%]".
        data_dir: where prepared data lie; default: the variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
        budget: GiB that the split may need. It is read into memory, encoded where its pictures differ in size, because
            its files give no access to sample i. Beyond it, pictures are read from the record files again in each
            epoch, in the order of a seeded shuffle buffer: see the limits of streams in docs/data.md.

    Raises:
        InputError: an unknown name or split, a data set that is not prepared, a split beyond the budget that is no
            pictures in record files, features that are neither a picture nor numbers.
    """
    builder = _builder(name, data_dir)
    for part in split.split("+"):
        if (named := part.split("[")[0].strip()) not in builder.info.splits:
            raise unknown(f"split of {builder.info.name}", named, builder.info.splits)
    needed = _needed(builder, split)
    if needed <= budget:
        return _read(builder, split)
    source = _sequential(builder, split, needed, budget)
    warnings.warn(
        f"split {split!r} of {builder.info.name} needs {needed:.1f} GiB in memory, the budget is {budget} GiB: it is "
        f"read from its files in every epoch, shuffled in a buffer of {source.buffer} pictures",
        stacklevel=2,
    )
    return source


def _needed(builder: Any, split: str) -> float:
    """Returns the memory that a split needs, GiB."""
    info, whole = builder.info.splits[split], list(builder.info.splits.values())
    shapes = [feature.shape for feature in builder.info.features.values() if feature.shape]
    decoded = info.num_examples * max((math.prod(shape) for shape in shapes if None not in shape), default=0)
    stored = sum(part.num_bytes or 0 for part in whole) / max(1, sum(part.num_examples for part in whole))
    return max(info.num_bytes or stored * info.num_examples, decoded) / 2**30


def _sequential(builder: Any, split: str, needed: float, budget: float) -> Sequential:
    """Returns the source of a split's record files."""
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, _keys(builder)
    label = features[keys[1]]
    in_records = str(getattr(builder.info.file_format, "value", "")) == "tfrecord"
    if not in_records or not isinstance(features[keys[0]], tfds.features.Image):
        raise InputError(
            f"split {split!r} of {builder.info.name} needs {needed:.1f} GiB in memory, the budget is {budget} GiB: "
            f"take a slice such as '{split}[:10%]', raise budget, or write the pictures to a folder and use from_folder"
        )
    files = [(file.filename, file.skip, file.take) for file in builder.info.splits[split].file_instructions]
    count = sum(records for _, _, records in files)
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
    return Sequential(
        f"{builder.info.name}/{split}", "classification" if classes else "regression",
        Records(features, keys, files), classes=classes, rows=np.arange(count, dtype=np.int64),
    )  # fmt: skip


def _builder(name: Any, data_dir: Any) -> Any:
    # without it a machine with no network waits minutes for a metadata server
    os.environ.setdefault("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR)
    if isinstance(name, tfds.core.DatasetBuilder):
        return name
    if str(name) in BUILTIN:
        return _builtin(str(name), folder)
    if Path(name).is_dir():
        return tfds.builder_from_directory(str(name))
    try:
        builder = tfds.builder(str(name), data_dir=folder, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        raise unknown("data set", name, [*tfds.list_builders(with_community_datasets=False), *BUILTIN]) from error
    if not builder.info.splits:
        raise InputError(
            f"data set {name!r} is not prepared in {folder}; prepare it once where there is a network: "
            f'python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{folder}').download_and_prepare()\""
        )
    return builder


def _builtin(name: str, folder: str) -> Any:
    import filelock
    import tensorflow_datasets as tfds

    from dlkit.data.tfds.digits import Digits

    builder = {"digits": Digits}[name](data_dir=folder)
    if not builder.info.splits:
        os.makedirs(folder, exist_ok=True)
        with filelock.FileLock(os.path.join(folder, f".{name}.lock")):
            builder = {"digits": Digits}[name](data_dir=folder)  # another process may have prepared it meanwhile
            if not builder.info.splits:
                tfds.disable_progress_bar()
                builder.download_and_prepare()
    return builder


def _read(builder: Any, split: str) -> Source:
    import tensorflow_datasets as tfds

    features = builder.info.features
    image, label = _keys(builder)
    decoders = {image: tfds.decode.SkipDecoding()} if isinstance(features[image], tfds.features.Image) else None
    dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    inputs, targets = [], []
    for example in dataset.as_numpy_iterator():
        inputs.append(example[image])
        targets.append(example[label])
    if not inputs:
        raise InputError(f"split {split!r} of {builder.info.name} is empty")
    if decoders is None:
        store: Any = Arrays(_numbers(builder, image, inputs))
    elif (shape := features[image].shape) and None not in shape and shape[-1] in (1, 3):
        store = Arrays(_decoded(inputs))
    else:
        store = Strings(inputs)
    rows = np.arange(len(inputs), dtype=np.int64)
    name = f"{builder.info.name}/{split}"
    if isinstance(features[label], tfds.features.ClassLabel):
        names = tuple(features[label].names)
        return Source(name, "classification", store, classes=names, labels=np.asarray(targets, np.int64), rows=rows)
    return Source(name, "regression", store, values=_numbers(builder, label, targets), rows=rows)


def _numbers(builder: Any, feature: str, values: list[Any]) -> np.ndarray:
    """Returns a feature's values as float32 (n, numbers of each)."""
    try:
        return np.asarray(values, np.float32).reshape(len(values), -1)
    except (TypeError, ValueError):
        raise InputError(
            f"feature {feature!r} of {builder.info.name} is {builder.info.features[feature]}: neither a picture, a "
            "class nor as many numbers in each example; give from_arrays what you make of it"
        ) from None


def _keys(builder: Any) -> tuple[str, str]:
    """Returns the names of the input and the target feature."""
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2:
        return keys
    features = builder.info.features
    if "image" in features and "label" in features:
        return "image", "label"
    raise InputError(
        f"data set {builder.info.name} declares no (input, target) pair; its features are {', '.join(features)}"
    )


def _decoded(contents: list[bytes]) -> np.ndarray:
    import tensorflow as tf

    return np.stack([tf.io.decode_image(content, expand_animations=False).numpy() for content in contents])
