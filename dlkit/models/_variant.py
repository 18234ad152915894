"""What tells a model from others of the same shapes, read from its layers, so that it survives save and reload."""

import re
from typing import Any

import keras

from dlkit.models._residual import PadShortcut
from dlkit.models._stage import Stage


def variant(model: keras.Model) -> dict[str, Any]:
    """Returns what a model of this package is: family, version, depth, shortcut, epsilon, stem.

    It is read from the layers' own configurations (strides, padding, epsilon), so it is the same after saving and
    reloading, and it cannot differ from what the model computes.

    >>> from dlkit import models
    >>> models.variant(models.resnet(50, version="v1.5", width=0.1))["version"]
    'v1.5'
    """
    layers = _layers(model)
    names = list(layers)
    found: dict[str, Any] = {"family": None, "norm": _norm_kind(layers), "epsilon": _epsilon(layers)}
    found["top"] = "predictions" in names
    if any(n.startswith("stage") for n in names):
        return {**found, **_resnet(layers)}
    if "conv5_1" in names:
        depths = tuple(sum(f"conv{s}_{i}" in names for i in range(1, 9)) for s in range(1, 6))
        third = layers["conv3_3"].kernel_size[0] if "conv3_3" in names else None
        return {**found, "family": "vgg", "depths": depths, "third": third, "lrn": "conv1_1_lrn" in names}
    if "conv5" in names and "conv5_act" in names:
        return {**found, "family": "alexnet", "columns": layers["conv2"].groups, "lrn": "norm1" in names}
    return found


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers by name, those inside looped stages under their block's name."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, Stage):
            for block, rename in layer.blocks():
                found.update({rename(inner.name): inner for inner in block.layers})
        else:
            found[layer.name] = layer
    return found


def _resnet(layers: dict[str, Any]) -> dict[str, Any]:
    stages = sorted({int(m[1]) for m in (re.match(r"stage(\d+)_", n) for n in layers) if m})
    blocks = tuple(sum(f"stage{s}_block{b}_conv1" in layers for b in range(1, 401)) for s in stages)
    bottleneck = "stage2_block1_conv3" in layers
    padded = next((layer for layer in layers.values() if isinstance(layer, PadShortcut)), None)
    projected = any(re.fullmatch(r"stage\d+_block\d+_shortcut", n) for n in layers) and padded is None
    first = layers["stage3_block1_conv1"] if len(stages) > 1 else layers["stage2_block1_conv1"]
    if "last_act" in layers:
        version = "v2"
    elif any(n.endswith("_shortcut_pool") for n in layers) or "conv1_3" in layers:
        version = "d"
    else:
        version = "v1" if first.strides[0] > 1 else "v1.5"
    return {
        "family": "resnet" if len(stages) == 4 else "resnet_cifar",
        "version": version,
        "bottleneck": bottleneck,
        "blocks": blocks,
        "residual": any(type(layer).__name__ == "Add" for layer in layers.values()),
        "shortcut": "A" if padded is not None else "B" if projected else None,
        "pad": padded.pad if padded is not None else None,
        "stem": "imagenet" if "pool1" in layers else "cifar",
        "stride_first": first.strides[0] > 1,
    }


def _norm_kind(layers: dict[str, Any]) -> str | None:
    for name, layer in layers.items():
        if "_norm" in name:
            return type(layer).__name__
    return None


def _epsilon(layers: dict[str, Any]) -> float | None:
    for name, layer in layers.items():
        if "_norm" in name and hasattr(layer, "epsilon"):
            return float(layer.epsilon)
    return None
