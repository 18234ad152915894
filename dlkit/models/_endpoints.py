"""endpoints(): the feature maps of a network's stages, for pyramids and localisation."""

import re
from typing import Any

import keras

from dlkit._errors import InputError

_STAGE = re.compile(r"(?:member\d+_)*(stage\d+|conv\d+)(?=_|$)")


def endpoints(model: keras.Model) -> dict[str, Any]:
    """Returns the last feature map of every stage, finest first, as symbolic tensors.

    The names are the papers': `stage2` ... `stage5` of a ResNet (conv1 is its first stage), `conv1` ... `conv5` of a
    VGG or AlexNet, `conv1`, `conv2`, ... of `cnn`. Of several with the same size only the last is kept.

    Args:
        model: a model of this package, with or without its classifier.

    Raises:
        InputError: no layer bears the name of a stage.

    Example:
        >>> import keras
        >>> from dlkit import models
        >>> backbone = models.resnet(18, include_top=False, input_shape=(64, 64, 3), width=0.25)
        >>> maps = models.endpoints(backbone)
        >>> {name: map.shape[1] for name, map in maps.items()}
        {'conv1': 32, 'stage2': 16, 'stage3': 8, 'stage4': 4, 'stage5': 2}
        >>> pyramid = keras.Model(backbone.input, maps)

    Reference: the stages of K. He et al. 2015, Table 1, and of K. Simonyan, A. Zisserman 2014, Table 1.
    """
    found: dict[str, Any] = {}
    for layer in model.layers:
        match = _STAGE.match(layer.name)
        if not match or layer.name.endswith("_pad") or not hasattr(layer, "output"):
            continue
        output = layer.output
        if not isinstance(output, list) and len(output.shape) > 2:
            found.pop(match[1], None)
            found[match[1]] = output
    if model.layers and model.layers[-1].name in ("last_act", "last_norm") and found:
        found[next(reversed(found))] = model.outputs[0]
    if not found:
        raise InputError(
            f"endpoints: {model.name} has no layers named stage1_..., conv1_...; it is not of this package"
        )
    kept: dict[tuple[Any, ...], str] = {}
    for name, output in found.items():
        kept[tuple(output.shape[1:-1]) if None not in output.shape[1:-1] else (name,)] = name
    return {name: output for name, output in found.items() if name in kept.values()}
