"""grow(): a trained VGG with more layers, the lecture's way to deep networks without normalisation."""

import functools
from typing import Any

import keras
import numpy as np

from dlkit import initializers
from dlkit._errors import InputError, unknown
from dlkit.models._vgg import CHANNELS, SPECS, vgg

INITS = ("random", "identity")
_NORMS = {
    "BatchNorm": "batch",
    "GroupNorm": "group",
    "LayerNorm": "layer",
    "InstanceNorm": "instance",
    "RMSNorm": "rms",
    "LocalResponseNorm": "response",
}


def grow(model: keras.Model, config: str, init: str = "random") -> keras.Model:
    """Builds a deeper VGG that starts from the weights of a shallower one.

    Layers of the same name keep their weights; those that the deeper configuration adds at the end of a stage are new.
    Repeat: train A, grow it to B, train, grow to D, train. With `norm="batch"` deep networks train from random weights,
    and this is not needed.

    Args:
        model: a VGG of this package, usually trained. Its classes, input, norm, activation, width and head are kept.
        config: the deeper configuration: "B", "C", "D" or "E".
        init: "random" draws the inserted layers as the lecture tells it; "identity" lets them pass their input on, so
            that the new network computes what the old one did. Identity needs ReLU or no activation, and batch
            normalisation or none.

    Returns:
        A new model; the old one is untouched.

    Raises:
        InputError: no VGG was given, the configuration has fewer layers somewhere, or identity is impossible.

    Example:
        >>> from dlkit import models
        >>> shallow = models.vgg("A", classes=10, input_shape=(32, 32, 3), width=0.1, stem="cifar")
        >>> models.grow(shallow, "B", init="identity").name
        'vgg13_b'

    Reference: K. Simonyan, A. Zisserman 2014, section 3.1; lecture 000 (E. Sokolov), section 8.2; T. Chen et al.,
    "Net2Net", 2015, https://arxiv.org/abs/1511.05641 (identity).
    """
    if config not in SPECS:
        raise unknown("VGG configuration", config, SPECS)
    if init not in INITS:
        raise unknown("init", init, INITS)
    old = {layer.name: layer for layer in model.layers}
    depths = tuple(sum(f"conv{s}_{i}" in old for i in range(1, 9)) for s in range(1, 6))
    if 0 in depths:
        raise InputError(f"grow: {model.name} is no VGG of this package: it has no conv1_1 ... conv5_1")
    if any(new < have for new, have in zip(SPECS[config].depths, depths, strict=True)):
        raise InputError(
            f"grow: {config} has {SPECS[config].depths} layers per stage, {model.name} {depths}; grow upwards"
        )
    if ("conv1_1_lrn" in old) != SPECS[config].lrn:
        raise InputError(f"grow: A-LRN normalises after conv1_1 and {config} does not; start from A")
    arguments = _arguments(model, old)
    grown = vgg(config, **arguments)
    for layer in grown.layers:
        if layer.name in old:
            _keep(layer, old[layer.name])
        elif init == "identity" and layer.weights:
            _identity(layer, grown)
    return grown


def _arguments(model: keras.Model, old: dict[str, keras.layers.Layer]) -> dict[str, Any]:
    """Returns the builder's arguments that lead to such a model."""
    top = "fc8" in old
    dropout = old["fc6_dropout"].rate if top and "fc6_dropout" in old else 0.0
    return {
        "classes": old["fc8"].units if top else 1000,
        "input_shape": tuple(model.input_shape[1:]),
        **_norm(old.get("conv1_1_norm")),
        "activation": _again(old["conv1_1_act"]),
        "initializer": "glorot",
        "width": _width(old),
        "classifier_activation": old["predictions"].activation if top else None,
        "include_top": top,
        "dropout": dropout,
        "stem": "imagenet" if "pool1" in old else "cifar",
    }


def _width(old: dict[str, keras.layers.Layer]) -> float:
    """Returns a width that gives every stage its channels; they were rounded to even numbers."""
    have = [(old[f"conv{s}_1"].filters, paper) for s, paper in enumerate(CHANNELS, 1)]
    have += [(old[fc].units, 4096) for fc in ("fc6", "fc7") if fc in old]
    if all(n == paper for n, paper in have):
        return 1.0
    low, high = (pick((n + gap) / paper for n, paper in have) for pick, gap in ((max, -1), (min, 1)))
    if low > high:
        raise InputError(f"grow: channels {[n for n, _ in have]} are those of no width")
    return (low + high) / 2


def _again(layer: keras.layers.Layer) -> Any:
    """Returns a factory of layers like this one under other names."""
    cls: Any = type(layer)
    return functools.partial(cls, **{k: v for k, v in layer.get_config().items() if k != "name"})


def _norm(layer: keras.layers.Layer | None) -> dict[str, Any]:
    """Returns the builder's arguments for this norm; by name where it is one of ours, so that groups fit again."""
    if layer is None:
        return {"norm": "none"}
    name = _NORMS.get(type(layer).__name__)
    return {"norm": name, "epsilon": getattr(layer, "epsilon", None)} if name else {"norm": _again(layer)}


def _keep(layer: keras.layers.Layer, old: keras.layers.Layer) -> None:
    """Takes the weights over; a 1x1 kernel becomes the centre of a 3x3 (from C to D)."""
    new = []
    for have, want in zip(old.get_weights(), layer.get_weights(), strict=True):
        if have.shape != want.shape:
            if have.ndim != 4 or have.shape[2:] != want.shape[2:] or have.shape[:2] != (1, 1):
                raise InputError(f"grow: {layer.name} has {want.shape} and the given model {have.shape}")
            centre = np.zeros_like(want)
            centre[want.shape[0] // 2, want.shape[1] // 2] = have[0, 0]
            have = centre
        new.append(have)
    layer.set_weights(new)


def _identity(layer: keras.layers.Layer, model: keras.Model) -> None:
    """Makes an inserted layer pass its input on."""
    if isinstance(layer, keras.layers.Conv2D):
        activation = model.get_layer(f"{layer.name}_act")
        if not _idempotent(activation):
            raise InputError(
                f'grow: init="identity" needs f(f(x)) = f(x), as ReLU has it; {type(activation).__name__} changes what '
                'passes twice. Use init="random"'
            )
        kernel = np.asarray(initializers.get("dirac")(layer.kernel.shape))
        layer.set_weights([kernel, *(np.zeros_like(w) for w in layer.get_weights()[1:])])
    elif type(layer).__name__ in ("BatchNorm", "BatchNormalization"):
        # the moving averages start at 0 and 1: only epsilon is left to undo
        layer.gamma.assign(np.full(layer.gamma.shape, np.sqrt(1.0 + layer.epsilon)))
    else:
        raise InputError(
            f'grow: init="identity" is impossible through {type(layer).__name__}, which rescales every sample by '
            'its own statistics; use init="random", or a model with norm="batch" or "none"'
        )


def _idempotent(layer: keras.layers.Layer) -> bool:
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return isinstance(layer, keras.layers.ReLU | keras.layers.Identity) or name in ("relu", "linear")
