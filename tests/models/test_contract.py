"""Every builder passes the contract, with every norm and activation in pairs."""

import itertools

import keras
import numpy as np
import pytest

from dlkit import models
from dlkit.testing import check_model

pytestmark = pytest.mark.filterwarnings("ignore::dlkit.models.SmallMapWarning")

NORMS = ("none", "batch", "group", "layer", "instance", "rms")
ACTIVATIONS = ("relu", "leaky_relu", "prelu", "elu", "gelu", "silu", "swish")
# slim copies: name, arguments
BUILDERS = {
    "mlp": ("mlp", {"units": (16,), "input_shape": (6,)}),
    "cnn": ("cnn", {"blocks": 2, "convs": 1, "width": 0.25, "input_shape": (12, 12, 3)}),
    "inception": ("inception", {"blocks": 2, "convs": 1, "width": 0.5, "input_shape": (12, 12, 3)}),
    "alexnet": ("alexnet", {"width": 0.05, "input_shape": (32, 32, 3), "stem": "cifar", "dropout": 0.0}),
    "alexnet_1": ("alexnet_1", {"width": 0.05, "input_shape": (32, 32, 3), "stem": "cifar", "dropout": 0.0}),
    "vgg": ("vgg11", {"width": 0.05, "input_shape": (32, 32, 3), "stem": "cifar", "dropout": 0.0, "initializer": "he"}),
    "resnet": ("resnet18", {"width": 0.1, "input_shape": (33, 33, 3)}),
    "resnet_v2": ("resnet18", {"width": 0.1, "input_shape": (17, 17, 3), "stem": "cifar", "version": "v2"}),
    "resnet_d": ("resnet18", {"width": 0.1, "input_shape": (33, 33, 3), "version": "d"}),
    "bottleneck": ("resnet_cifar", {"depth": 11, "block": "bottleneck", "version": "v1.5", "input_shape": (9, 9, 3)}),
    "resnet_cifar": ("resnet_cifar8", {"width": 0.5, "input_shape": (12, 12, 3)}),
    "resnet_cifar_v2": ("resnet_cifar8", {"width": 0.5, "input_shape": (12, 12, 3), "version": "v2", "shortcut": "B"}),
    "plain": ("plain_cifar8", {"width": 0.5, "input_shape": (12, 12, 3)}),
    "cifar_fast": ("cifar_fast", {"width": 0.125, "input_shape": (20, 20, 3)}),
}


def pairs() -> list[tuple[str, str, str]]:
    """Returns few (builder, norm, activation) that hold every pair of builder and norm and of norm and activation.

    The activation runs through all of its values along every norm's diagonal.
    """
    cases = []
    for i, builder in enumerate(BUILDERS):
        for j, norm in enumerate(NORMS):
            if builder == "mlp" and norm == "instance":
                continue  # no positions to normalise over
            cases.append((builder, norm, ACTIVATIONS[(i + j) % len(ACTIVATIONS)]))
    return cases


def dear_pairs() -> list[tuple[str, str, str]]:
    """Returns the pairs without two of three for the 18-layer networks, which share one block function."""
    large = ("resnet", "resnet_v2", "resnet_d")
    return [c for c in pairs() if c[0] not in large or (large.index(c[0]) + NORMS.index(c[1])) % 3 == 0]


def cases() -> list:
    """Returns every pair, those of the 18-layer networks that `dear_pairs` leaves out as slow ones."""
    return [pytest.param(*c, marks=[] if c in dear_pairs() else [pytest.mark.slow]) for c in pairs()]


def build(builder: str, norm: str, activation: str, **kw) -> keras.Model:
    name, arguments = BUILDERS[builder]
    return models.create(name, classes=3, norm=norm, activation=activation, **{**arguments, **kw})


def test_the_table_holds_every_pair():
    cases = pairs()
    assert {(b, n) for b, n, _ in cases} == set(itertools.product(BUILDERS, NORMS)) - {("mlp", "instance")}
    assert {(n, a) for _, n, a in cases} == set(itertools.product(NORMS, ACTIVATIONS))
    assert {(b, a) for b, _, a in cases} >= {(b, ACTIVATIONS[i % 7]) for i, b in enumerate(BUILDERS)}


ALL_BUT_OVERFIT = ("build", "names", "dtype", "batch", "reload", "weights", "export")
SLOW = ("resnet", "resnet_v2", "resnet_d", "inception")  # their pairs run below, their training with the slow ones


@pytest.mark.parametrize("builder", [b for b in BUILDERS if b not in SLOW])
def test_builder_passes_the_whole_contract(builder):
    norm = "none" if builder in ("mlp", "alexnet", "alexnet_1", "vgg", "cnn") else "batch"
    check_model(lambda: build(builder, norm, "relu"))


@pytest.mark.parametrize(("builder", "norm", "activation"), cases())
def test_builder_saves_and_reloads_with_every_norm_and_activation(builder, norm, activation):
    check_model(lambda: build(builder, norm, activation), skip=("overfit", "export", "build"))


@pytest.mark.slow
@pytest.mark.parametrize(("builder", "norm", "activation"), dear_pairs())
def test_builder_overfits_and_exports_with_every_norm_and_activation(builder, norm, activation):
    check_model(
        lambda: build(builder, norm, activation),
        skip=("reload", "weights", "build", "batch"),
        steps=200,
        learning_rate=3e-3,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
@pytest.mark.parametrize("builder", ["cnn", "alexnet", "vgg", "resnet_d", "resnet_cifar_v2"])
def test_the_last_activation_is_float32_under_half_precision(builder, policy):
    keras.config.set_dtype_policy(policy)
    norm = "none" if builder in ("alexnet", "vgg", "cnn") else "batch"
    model = build(builder, norm, "relu")
    y = model(np.zeros((2, *model.input_shape[1:]), "float32"), training=False)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert model.get_layer("predictions").dtype_policy.name == "float32"


@pytest.mark.parametrize("builder", [b for b in BUILDERS if b != "mlp"])
def test_without_top_the_model_returns_its_last_map(builder):
    norm = "none" if builder in ("alexnet", "alexnet_1", "vgg", "cnn") else "batch"
    model = build(builder, norm, "relu", include_top=False)
    whole = build(builder, norm, "relu")
    assert len(model.output_shape) == 4
    names = {layer.name for layer in model.layers}
    assert "predictions" not in names
    assert names < {layer.name for layer in whole.layers}


def test_builders_with_a_probability_output_overfit_too():
    check_model(lambda: build("resnet_cifar", "batch", "relu", classifier_activation="softmax"), skip=ALL_BUT_OVERFIT)
