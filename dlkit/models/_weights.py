"""load_weights(): weights made by other libraries, checked against the network that they were made for."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dlkit._errors import InputError, unknown
from dlkit.models._hdf5_files import read_keras
from dlkit.models._stage import named_weights
from dlkit.models._torch_files import read_safetensors, read_torch
from dlkit.models._variant import variant
from dlkit.models._weight_names import Found, from_keras, from_torch

SOURCES = ("auto", "torchvision", "timm", "pytorch", "keras", "dlkit")
_TORCH = (".pth", ".pt", ".th", ".bin", ".ckpt")
_KERAS = (".h5", ".hdf5", ".keras")
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What `load_weights` did."""

    path: str
    loaded: tuple[str, ...]  # weights of the model, "layer/weight"
    missing: tuple[str, ...]  # weights of the model that kept their values
    leftover: tuple[str, ...]  # names in the file that were not used
    folded: tuple[str, ...]  # convolution biases that went into the norm after them
    adapted: tuple[str, ...]  # weights that were fitted to other channels, or heads left out for other classes

    def __str__(self) -> str:
        parts = [f"{self.path}: {len(self.loaded)} weights loaded"]
        for word in ("missing", "leftover", "folded", "adapted"):
            names = getattr(self, word)
            if names:
                parts.append(f"{len(names)} {word}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        return "; ".join(parts)


def load_weights(
    model: keras.Model,
    path: str | Path,
    source: str = "auto",
    allow_partial: bool = False,
    *,
    adapt: bool = False,
    version: str | None = None,
    pad: str | None = None,
) -> Report:
    """Loads weights made by torchvision, timm, plain PyTorch code, keras.applications or this package.

    Nothing in the file is run: PyTorch's pickles pass a reader that admits only tensors and dictionaries. Names are
    mapped by structure. Every shape is compared, and what the shapes do not show: where a bottleneck's stride is, where
    option A puts its zeros, the norm's epsilon. Only when everything fits is the first weight written.

    Args:
        model: a model of this package.
        path: `.pth`, `.pt`, `.th`, `.bin` (PyTorch, zip or legacy format), `.safetensors`, `.h5`, `.weights.h5` or
            `.keras`.
        source: who wrote the file: "torchvision", "timm", "pytorch", "keras" (applications), "dlkit"; "auto" tells by
            the names in it.
        allow_partial: True loads what fits when weights are missing or left over. Without it that is an error.
        adapt: True fits the first kernel to another number of input channels (grey: the sum over the colours; more: the
            colours repeated and rescaled) and leaves a classifier with another number of classes as it is.
        version: overrides what is assumed of the file's bottlenecks: PyTorch code puts the stride in the 3x3 ("v1.5"),
            a network converted from the authors' has it in the first 1x1 ("v1"). The names do not tell.
        pad: overrides where the file's network puts option A's zeros: "split" in public PyTorch code, "after" in the
            authors'. The names do not tell that either.

    Returns:
        A report: what was loaded, folded, fitted and left over.

    Raises:
        InputError: the file is broken, hostile or of an unknown network; a layer is missing or has another shape; or
            the weights are of another variant, in which case the builder call that fits is named.

    Example:
        >>> import tempfile, os
        >>> from dlkit import models
        >>> file = os.path.join(tempfile.mkdtemp(), "a.weights.h5")
        >>> models.resnet_cifar(8).save_weights(file)
        >>> print(str(models.load_weights(models.resnet_cifar(8), file)).split(": ")[-1])
        37 weights loaded
    """
    path = Path(path)
    found = _read(path, source)
    if version is not None:
        found.variant["version"] = version
    if pad is not None and found.variant.get("pad"):
        found.variant["pad"] = pad
    try:
        _check_variant(model, found.variant)
        return _assign(model, path, found, allow_partial, adapt)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _read(path: Path, source: str) -> Found:
    if source not in SOURCES:
        raise unknown("source of weights", source, SOURCES)
    if not path.is_file():
        raise InputError(f"{path} is no file; give the path of a weight file")
    suffix = path.suffix.lower()
    kind = "torch" if suffix in (*_TORCH, ".safetensors") else "keras" if suffix in _KERAS else None
    if kind is None:
        known = ", ".join((*_TORCH, ".safetensors", *_KERAS))
        raise InputError(f"{path}: unknown kind of weight file {suffix!r}; known: {known}")
    if source != "auto" and (source in ("keras", "dlkit")) != (kind == "keras"):
        raise InputError(f'{path}: source={source!r} does not write {suffix} files; leave it at "auto"')
    try:
        if kind == "keras":
            return from_keras(*read_keras(path))
        return from_torch(read_safetensors(path) if suffix == ".safetensors" else read_torch(path))
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _check_variant(model: keras.Model, theirs: dict[str, Any]) -> None:
    """Refuses weights of another function, naming the builder call that fits them."""
    if not theirs:
        return
    ours = variant(model)
    differ = []
    for key in ("family", "blocks", "bottleneck", "depths", "shortcut", "pad", "stem", "epsilon", "version"):
        if key not in theirs or (theirs[key] is None and key != "shortcut"):
            continue
        if key == "version" and not _versions_differ(ours, theirs):
            continue
        if key == "epsilon" and ours["norm"] is None:
            continue
        if key == "shortcut" and ours.get("shortcut") is None and ours.get("residual"):
            continue  # no stage changes its shape
        if key == "pad" and ours.get("shortcut") != "A":
            continue
        if ours.get(key) != theirs[key]:
            differ.append(f"{key} {_word(theirs[key])} (the model: {_word(ours.get(key))})")
            if key == "family":
                break
    if ours.get("stem") == "imagenet" and theirs.get("pooled_first"):
        differ.append("its first norm comes after the pooling, which no builder of this package does")
    if theirs.get("raw_first"):
        differ.append("its first block carries on what no norm has seen, where the paper splits after the activation")
    if ours.get("family") == theirs["family"] and ours.get("norm") not in (None, "BatchNorm", "BatchNormalization"):
        differ.append(f"batch normalisation or none (the model: {ours['norm']})")
    if differ:
        raise InputError(f"the weights are of another network: {'; '.join(differ)}. Build {_call(theirs)}")


def _versions_differ(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Tells whether the versions are different functions; with two 3x3 convolutions v1 and v1.5 are the same."""
    if not theirs.get("bottleneck") and {ours.get("version"), theirs["version"]} <= {"v1", "v1.5"}:
        return False
    return ours.get("version") != theirs["version"]


def _call(theirs: dict[str, Any]) -> str:
    """Returns the builder call that fits the weights."""
    if theirs["family"] == "vgg":
        config = {(1, 1, 2, 2, 2): "A", (2, 2, 2, 2, 2): "B", (2, 2, 3, 3, 3): "D", (2, 2, 4, 4, 4): "E"}
        arguments = [repr(config.get(theirs["depths"], "?"))]
        arguments += ['norm="batch"'] if theirs.get("epsilon") else []
        return f"vgg({', '.join(arguments)})"
    if theirs["family"] == "alexnet":
        return "alexnet(columns=1) or alexnet(columns=2)"
    arguments = []
    convs = 3 if theirs["bottleneck"] else 2
    if theirs["family"] == "resnet":
        depth = _DEPTHS.get((theirs["bottleneck"], theirs["blocks"]))
        arguments.append(str(depth) if depth else f"<no depth has {theirs['blocks']} blocks>")
        arguments.append(f'version="{theirs["version"]}"')
    else:
        arguments.append(str(convs * sum(theirs["blocks"]) + 2))
        arguments += ['block="bottleneck"'] if theirs["bottleneck"] else []
        version = "v1" if theirs["version"] == "v1.5" and not theirs["bottleneck"] else theirs["version"]
        arguments.append(f'version="{version}"')
        arguments.append(f'shortcut="{theirs["shortcut"]}"')
    if theirs.get("pad"):
        arguments.append(f'pad="{theirs["pad"]}"')
    if theirs.get("stem") == "cifar" and theirs["family"] == "resnet":
        arguments.append('stem="cifar"')
    if theirs.get("epsilon") not in (None, 1e-5):
        arguments.append(f"epsilon={theirs['epsilon']:g}")
    return f"{theirs['family']}({', '.join(arguments)})"


def _assign(model: keras.Model, path: Path, found: Found, allow_partial: bool, adapt: bool) -> Report:
    """Writes the weights after every check has passed."""
    targets = named_weights(model)
    weights = dict(found.weights)
    folded = _fold_biases(weights, targets)
    _reorder(weights, found, model)
    ready, adapted, kept = _fitted(weights, targets, adapt)
    missing = [n for n in targets if n not in ready and n not in kept and "seed" not in n]
    leftover = found.leftover + [found.origin[n] for n in found.weights if n not in targets and n not in folded]
    spare = leftover if variant(model).get("top") else [k for k in leftover if not _of_head(k)]
    if not ready:
        raise InputError(f"none of the file's weights fits {model.name}: it holds {', '.join(list(found.weights)[:3])}")
    if (missing or spare) and not allow_partial:
        raise InputError(
            f"{len(missing)} weights of {model.name} are not in the file ({', '.join(missing[:3]) or 'none'}) and "
            f"{len(spare)} of the file are not in the model ({', '.join(spare[:3]) or 'none'}); allow_partial=True "
            "loads what fits"
        )
    for name, value in ready.items():
        targets[name].assign(np.asarray(value))
    return Report(str(path), tuple(ready), tuple(missing), tuple(leftover), tuple(folded), tuple(adapted))


def _fitted(
    weights: dict[str, np.ndarray], targets: dict[str, Any], adapt: bool
) -> tuple[dict[str, np.ndarray], list[str], set[str]]:
    """Returns the values to write, what was fitted, and the weights of a head that keeps its own.

    Raises:
        InputError: shapes differ, or whole numbers stand where fractions are expected.
    """
    ready: dict[str, np.ndarray] = {}
    adapted: list[str] = []
    kept: set[str] = set()
    wrong: list[str] = []
    for name in [n for n in targets if n in weights]:
        value, target = weights[name], targets[name]
        if value.dtype.kind not in "fV" and "float" in str(target.dtype):
            raise InputError(f"{name} holds {value.dtype} in the file, numbers with a fraction are expected")
        if tuple(value.shape) == tuple(target.shape):
            ready[name] = value
            continue
        fitted = _adapted(name, value, tuple(target.shape)) if adapt else None
        if fitted is not None:
            ready[name] = fitted
            adapted.append(name)
        elif adapt and name.split("/")[0] in ("fc", "fc8"):
            kept.add(name)
            adapted.append(f"{name} (other classes, kept)")
        else:
            wrong.append(f"{name} is {value.shape} in the file and {tuple(target.shape)} in the model")
    if wrong:
        advice = "" if adapt else "; adapt=True fits other input channels and leaves a head of other classes out"
        raise InputError("; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "") + advice)
    return ready, adapted, kept


def _fold_biases(weights: dict[str, np.ndarray], targets: dict[str, Any]) -> list[str]:
    """Moves the bias of a convolution in front of a norm into the norm's mean: (x + b) - (m) = x - (m - b)."""
    folded = []
    for name in [n for n in weights if n.endswith("/bias") and n not in targets]:
        mean = _mean_after(name.removesuffix("/bias"))
        if mean in weights and mean in targets:
            weights[mean] = weights[mean].astype("float32") - weights[name].astype("float32")
            folded.append(name)
    return folded


def _mean_after(layer: str) -> str:
    """Returns the moving mean of the norm that follows a convolution."""
    head, _, last = layer.rpartition("_")
    if head.startswith("stage") and last.startswith("conv"):
        return f"{head}_norm{last.removeprefix('conv')}/moving_mean"
    return f"{layer}_norm/moving_mean"


def _reorder(weights: dict[str, np.ndarray], found: Found, model: keras.Model) -> None:
    """Turns the rows of a dense kernel after a map from (channels, height, width) to (height, width, channels)."""
    for name in found.flat & set(weights):
        flatten = next((layer for layer in model.layers if layer.name == "flatten"), None)
        shape: tuple[Any, ...] = tuple(flatten.input.shape[1:]) if flatten is not None else ()
        rows, units = weights[name].shape
        if len(shape) == 3 and rows == shape[0] * shape[1] * shape[2]:
            height, width, channels = shape
            kernel = weights[name].reshape(channels, height, width, units)
            weights[name] = kernel.transpose(1, 2, 0, 3).reshape(rows, units)


def _adapted(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns a first kernel fitted to other input channels, None where that is not what differs."""
    first = name.split("/")[0] in ("conv1", "conv1_1") and value.ndim == 4 == len(shape)
    if not first or value.shape[:2] != shape[:2] or value.shape[3] != shape[3]:
        return None
    have, want = value.shape[2], shape[2]
    if want == 1:
        return value.sum(axis=2, keepdims=True)
    return value[:, :, np.arange(want) % have] * (have / want)


def _of_head(key: str) -> bool:
    return key.split(".")[0] in ("fc", "linear", "head", "classifier", "pre_logits") or key.split("/")[0].startswith(
        ("fc", "predictions")
    )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
