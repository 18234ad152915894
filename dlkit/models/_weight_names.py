"""Where other libraries keep the weights of each layer, and what tells their networks from ours."""

import dataclasses
import re
from typing import Any

import numpy as np

from dlkit._errors import InputError

# the weights of a norm here and in PyTorch
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclasses.dataclass
class Found:
    """One file's weights by the names of this package, and what the file says about its network."""

    weights: dict[str, np.ndarray]  # "layer/weight" to an array in this package's layout
    origin: dict[str, str]  # "layer/weight" to the file's own name
    leftover: list[str]
    variant: dict[str, Any]
    flat: frozenset[str] = frozenset()  # dense kernels that follow a map and are ordered (channels, height, width)


def from_torch(tensors: dict[str, np.ndarray]) -> Found:
    """Returns the weights of a PyTorch state dict by structure.

    Raises:
        InputError: the names follow no known network.
    """
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    if any(re.match(r"layer\d+\.", k) for k in tensors):
        return _torch_resnet(tensors)
    if any(re.match(r"stages\.\d+\.blocks", k) for k in tensors):
        raise InputError(
            "the file holds timm's ResNetV2, which normalises after the first pooling; no builder of this package "
            'does, and resnet(..., version="v2") follows the paper'
        )
    return _torch_sequential(tensors)


def _torch_resnet(tensors: dict[str, np.ndarray]) -> Found:
    """Returns the weights of torchvision's, timm's and the CIFAR reimplementations' naming."""
    places: dict[str, str] = {}
    deep = "conv1.0.weight" in tensors
    pre = not deep and _preactivated(tensors)
    if deep:
        for i, (conv, norm) in enumerate([("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")], 1):
            places |= {f"{conv}.": f"conv1_{i}", f"{norm}.": f"conv1_{i}_norm"}
    else:
        places |= {"conv1.": "conv1", "bn1.": "conv1_norm"}
    if pre and "bn1.weight" not in tensors:
        places["layer1.0.bn1."] = "conv1_norm"  # the same place where no pooling stands between
    places |= {f"{last}.": "last_norm" for last in ("bn", "norm", "bn_last", "last_bn", "post_bn")}
    places |= {f"{last}.": "fc" for last in ("fc", "linear", "head", "classifier")}
    names: dict[str, str] = {}
    for key in tensors:
        match = re.match(r"layer(\d+)\.(\d+)\.(conv|bn|downsample|shortcut)(\d*)\.(?:(\d+)\.)?", key)
        prefix = next((p for p in sorted(places, key=len, reverse=True) if key.startswith(p)), None)
        if prefix is not None:
            names[key] = places[prefix]
        elif match:
            block = f"stage{int(match[1]) + 1}_block{int(match[2]) + 1}"
            if match[3] in ("conv", "bn"):
                names[key] = f"{block}_{'conv' if match[3] == 'conv' else 'norm'}{match[4]}"
            else:
                names[key] = f"{block}_shortcut" + ("" if tensors[key].ndim == 4 else "_norm")
    found = _gather(tensors, names)
    found.variant = _resnet_variant(tensors, deep, pre)
    return found


def _preactivated(tensors: dict[str, np.ndarray]) -> bool:
    """Tells whether norms precede convolutions: the first norm of a wider block has the previous block's channels."""
    norm, conv = tensors.get("layer2.0.bn1.weight"), tensors.get("layer2.0.conv1.weight")
    return norm is not None and conv is not None and norm.shape[0] == conv.shape[1] != conv.shape[0]


def _resnet_variant(tensors: dict[str, np.ndarray], deep: bool, pre: bool) -> dict[str, Any]:
    stages = sorted({int(m[1]) for m in (re.match(r"layer(\d+)\.", k) for k in tensors) if m})
    blocks = tuple(len({k.split(".")[1] for k in tensors if k.startswith(f"layer{s}.")}) for s in stages)
    bottleneck = "layer1.0.conv3.weight" in tensors
    projected = any(re.match(r"layer\d+\.\d+\.(downsample|shortcut)\.", k) for k in tensors)
    stem = tensors.get("conv1.weight")
    version = "d" if deep else "v2" if pre else "v1.5"
    return {
        "family": "resnet" if len(stages) == 4 else "resnet_cifar",
        "blocks": blocks,
        "bottleneck": bottleneck,
        "version": version,
        "shortcut": "B" if projected else "A",
        "pad": None if projected else "split",
        "epsilon": 1e-5,
        "stem": "imagenet" if deep or (stem is not None and stem.shape[-1] > 3) else "cifar",
        "raw_first": pre
        and "bn1.weight" not in tensors
        and not any(k.startswith(("layer1.0.downsample.", "layer1.0.shortcut.")) for k in tensors),
        "pooled_first": pre and "bn1.weight" not in tensors and "layer1.0.bn1.weight" in tensors,
    }


def _torch_sequential(tensors: dict[str, np.ndarray]) -> Found:
    """Returns the weights of VGG and AlexNet, whose modules are numbered: the n-th convolution is the n-th."""
    modules: dict[str, list[str]] = {}
    for key in sorted(tensors, key=_natural):
        modules.setdefault(key.rpartition(".")[0], []).append(key)
    convs, linears, names = [], [], {}
    for module, keys in modules.items():
        weight = tensors.get(f"{module}.weight")
        if weight is None:
            continue
        if weight.ndim == 4 and not module.startswith("pre_logits"):
            convs.append(module)
        elif weight.ndim in (2, 4):
            linears.append(module)
        elif f"{module}.running_mean" in tensors and convs:
            names.update(dict.fromkeys(keys, f"{convs[-1]}\n_norm"))
    linears.sort(key=lambda module: not module.startswith("pre_logits"))
    labels = _sequential_labels([tensors[f"{m}.weight"] for m in convs])
    if labels is None or len(linears) not in (0, 3):
        raise InputError(
            f"the file holds {len(convs)} convolutions and {len(linears)} dense layers under names such as "
            f"{next(iter(tensors))!r}; that is no ResNet, VGG or AlexNet"
        )
    order = dict(zip(convs, labels, strict=True))
    for key, value in list(names.items()):
        names[key] = order[value.split("\n")[0]] + "_norm"
    for module, label in [*order.items(), *zip(linears, ("fc6", "fc7", "fc8"), strict=False)]:
        names.update(dict.fromkeys(modules[module], label))
    found = _gather(tensors, names)
    found.variant = {
        "family": "alexnet" if labels[0] == "conv1" else "vgg",
        "epsilon": 1e-5 if any(n.endswith("_norm") for n in names.values()) else None,
    }
    if found.variant["family"] == "vgg":
        found.variant["depths"] = tuple(sum(label.startswith(f"conv{s}_") for label in labels) for s in range(1, 6))
    if linears and tensors[f"{linears[0]}.weight"].ndim == 2:
        found.flat = frozenset({"fc6/kernel"})
    return found


def _sequential_labels(weights: list[np.ndarray]) -> list[str] | None:
    """Returns conv1 ... conv5 for AlexNet, conv1_1 ... for VGG, None for neither; stages by their channels."""
    if len(weights) == 5 and weights[0].shape[-1] != weights[-1].shape[-1]:
        return [f"conv{i}" for i in range(1, 6)]
    for depths in ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)):
        if sum(depths) == len(weights) and all(w.shape[-1] in (1, 3) for w in weights):
            return [f"conv{s}_{i}" for s, depth in enumerate(depths, 1) for i in range(1, depth + 1)]
    return None


def _gather(tensors: dict[str, np.ndarray], names: dict[str, str]) -> Found:
    """Returns the tensors that have a name here, in this package's layout."""
    weights: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    leftover: list[str] = []
    for key, value in tensors.items():
        layer = names.get(key)
        role = key.rpartition(".")[2]
        if layer is None:
            leftover.append(key)
            continue
        if re.search(r"_norm\d*$", layer):
            inverse = {v: k for k, v in _NORM.items()}
            target = f"{layer}/{inverse.get(role, role)}"
        else:
            target = f"{layer}/{'kernel' if role == 'weight' else role}"
            if role == "weight":
                value = _kernel(value, dense=layer.startswith("fc"))
        if target in weights:
            raise InputError(f"{key} and {origin[target]} both hold {target}")
        weights[target], origin[target] = value, key
    return Found(weights, origin, leftover, {})


def _kernel(value: np.ndarray, dense: bool) -> np.ndarray:
    """Returns (out, in, height, width) as (height, width, in, out), and dense kernels as (in, out)."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value.reshape(-1, value.shape[-1]) if dense else value
    return value.T


def from_keras(layers: dict[str, dict[str, np.ndarray]], configs: dict[str, dict[str, Any]]) -> Found:
    """Returns the weights of keras.applications, or of this package's own files, by layer name.

    Raises:
        InputError: the names follow no known network.
    """
    if "conv1_conv" in layers or any(re.match(r"conv\d_block\d+_1_conv", n) for n in layers):
        if any("preact" in n for n in layers):
            raise InputError(
                "the file holds keras.applications' ResNetV2, whose strides are in the last block of a stage; no "
                'builder of this package does that, and resnet(..., version="v2") follows the paper'
            )
        return _applications_resnet(layers, configs)
    if "block1_conv1" in layers:
        return _applications_vgg(layers)
    weights = {f"{n}/{w}": v for n, group in layers.items() for w, v in group.items()}
    return Found(weights, {k: k for k in weights}, [], {})


def _applications_resnet(layers: dict[str, Any], configs: dict[str, Any]) -> Found:
    def ours(name: str) -> str:
        match = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", name)
        if match:
            block, norm = f"stage{match[1]}_block{match[2]}", match[4] == "bn"
            if match[3] == "0":
                return f"{block}_shortcut" + ("_norm" if norm else "")
            return f"{block}_{'norm' if norm else 'conv'}{match[3]}"
        return {"conv1_conv": "conv1", "conv1_bn": "conv1_norm", "predictions": "fc", "probs": "fc"}.get(name, name)

    found = _renamed(layers, ours)
    blocks = tuple(len({n.split("_")[1] for n in layers if n.startswith(f"conv{s}_block")}) for s in range(2, 6))
    found.variant = {
        "family": "resnet",
        "blocks": blocks,
        "bottleneck": True,
        "version": "v1",
        "shortcut": "B",
        "pad": None,
        "epsilon": configs.get("conv1_bn", {}).get("epsilon", 1.001e-5),
        "stem": "imagenet",
    }
    return found


def _applications_vgg(layers: dict[str, Any]) -> Found:
    dense = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
    found = _renamed(layers, lambda n: dense.get(n) or re.sub(r"^block(\d)_conv(\d)$", r"conv\1_\2", n))
    depths = tuple(sum(n.startswith(f"block{s}_conv") for n in layers) for s in range(1, 6))
    found.variant = {"family": "vgg", "depths": depths, "epsilon": None}
    return found


def _renamed(layers: dict[str, Any], ours: Any) -> Found:
    pairs = {f"{ours(n)}/{w}": (f"{n}/{w}", v) for n, group in layers.items() for w, v in group.items()}
    return Found({k: v for k, (_, v) in pairs.items()}, {k: o for k, (o, _) in pairs.items()}, [], {})


def _natural(key: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
