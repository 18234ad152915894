"""Earlier strides compute the same with less work; a position that anything reads is computed."""

import json

import keras
import numpy as np
import pytest

from dlkit import layers, models
from dlkit.export import _fold, _strides

L = keras.layers


def outputs(model, size=None):
    shape = [4 if n is None else n for n in model.inputs[0].shape]
    shape = [3, *([size] * (len(shape) - 2) if size else shape[1:-1]), shape[-1]]
    x = np.random.default_rng(2).normal(size=shape).astype("float32")
    return np.asarray(model(x, training=False))


def network(*steps, shape=(13, 13, 4)):
    x = inputs = keras.Input(shape)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def conv(filters=4, size=1, strides=1, padding="same", rank=2, **kw):
    return getattr(L, f"Conv{rank}D")(filters, size, strides=strides, padding=padding, **kw)


def residual(shape=(13, 13, 4), activation=None, norm=None, size=3, rank=2):
    """The end of a stage of a ResNet and the start of the next, whose two layers read every other position."""
    x = inputs = keras.Input(shape)
    start = conv(4, 1, rank=rank, name="start")(x)
    y = conv(2, 1, rank=rank, name="first")(start)
    y = (activation or L.ReLU)()(y)
    y = conv(2, size, rank=rank, name="middle")(y)
    y = norm()(y) if norm else y
    y = (activation or L.ReLU)()(y)
    y = conv(4, 1, rank=rank, name="last")(y)
    x = L.ReLU()(L.Add()([start, y]))
    branches = [conv(6, 1, 2, rank=rank, name=name)(x) for name in ("left", "right")]
    return keras.Model(inputs, L.Add()(branches))


def nested():
    inner = residual()
    return network(inner, conv(2, 3), L.GlobalAveragePooling2D())


def four():
    return network(conv(4, 3, name="wide"), conv(4, 1, 2, name="a"), L.ReLU(), conv(4, 1, 2, name="b"))


# a network, and the layers whose stride grows
EARLIER = {
    "residual": (residual, ["middle"]),
    "residual_of_rows": (lambda: residual((11, 4), rank=1), ["middle"]),
    "residual_of_volumes": (lambda: residual((5, 6, 7, 4), rank=3), ["middle"]),
    "residual_of_any_size": (lambda: residual((None, None, 4)), ["middle"]),
    "even_size": (lambda: residual((12, 12, 4)), ["middle"]),
    "oblong_kernel": (lambda: residual(size=(1, 5)), ["middle"]),
    "normalisation_that_stays": (lambda: residual(norm=L.BatchNormalization), ["middle"]),
    "normalisation_of_dlkit": (lambda: residual(norm=layers.BatchNorm), ["middle"]),
    "slopes_per_channel": (lambda: residual(activation=lambda: L.PReLU(shared_axes=[1, 2])), ["middle"]),
    "swish": (lambda: residual(activation=layers.Swish), ["middle"]),
    "gelu": (lambda: residual(activation=lambda: layers.activation("gelu")), ["middle"]),
    "within_another_model": (nested, ["middle"]),
    "twice_as_early": (four, ["wide"]),
    "no_padding": (lambda: network(conv(4, 3, 2, "valid", name="a"), conv(4, 1, 2)), ["a"]),
    "of_size_1": (lambda: network(conv(4, 3, name="a"), conv(4, 1, name="b"), conv(4, 1, 3)), ["a"]),
    "activation_inside": (lambda: network(conv(4, 3, name="a", activation="relu"), conv(4, 1, 2)), ["a"]),
    "without_bias": (lambda: network(conv(4, 3, name="a", use_bias=False), conv(4, 1, 2)), ["a"]),
    "groups": (lambda: network(models._blocks.GroupedConv2D(4, 3, groups=2, name="a"), conv(4, 1, 2)), ["a"]),
}


@pytest.mark.parametrize(("build", "larger"), EARLIER.values(), ids=EARLIER)
def test_positions_that_nothing_reads_are_not_computed(build, larger, randomised):
    model = randomised(build())
    found = _strides.early_strides(model)
    assert list(found.layers) == larger
    before, after = found.multiply_adds
    assert before is None or after < before
    np.testing.assert_allclose(outputs(found.model), outputs(model), rtol=1e-5, atol=1e-5)
    for size in (7, 8, 9) if model.inputs[0].shape[1] is None else ():
        np.testing.assert_allclose(outputs(found.model, size), outputs(model, size), rtol=1e-5, atol=1e-5)


def read_elsewhere(reader):
    def build():
        x = inputs = keras.Input((13, 13, 4))
        x = conv(4, 3)(x)
        return keras.Model(inputs, [conv(4, 1, 2)(x), reader(x)])

    return build


def called_twice():
    shared, inputs = conv(4, 3), keras.Input((13, 13, 4))
    return keras.Model(inputs, [conv(2, 1, 2)(shared(inputs)), conv(2, 1, 2)(shared(L.ReLU()(inputs)))])


def broadcast():
    x = inputs = keras.Input((13, 13, 4))
    x = conv(4, 3)(x)
    scale = conv(4, 1)(L.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, conv(2, 1, 2)(L.Multiply()([x, scale])))


def centred(x):
    return x - keras.ops.mean(x, axis=(1, 2), keepdims=True)


KEPT = {
    "an_output": read_elsewhere(lambda x: x),
    "a_pool": read_elsewhere(lambda x: L.GlobalAveragePooling2D()(x)),
    "a_wider_convolution": read_elsewhere(lambda x: conv(4, 3, 2)(x)),
    "another_step": read_elsewhere(lambda x: conv(4, 1, 3)(x)),
    "a_layer_called_twice": called_twice,
    "a_layer_called_by_name": lambda: network(lambda x: conv(4, 3)(inputs=x), conv(4, 1, 2)),
    "a_scale_for_the_whole_map": broadcast,
    "norm_over_positions": lambda: network(conv(4, 3), layers.GroupNorm(2), conv(4, 1, 2)),
    "slopes_per_position": lambda: network(conv(4, 3), L.PReLU(), conv(4, 1, 2)),
    "function_of_the_whole_map": lambda: network(conv(4, 3, activation=centred), conv(4, 1, 2)),
    "activation_of_the_whole_map": lambda: network(conv(4, 3), L.Activation(centred), conv(4, 1, 2)),
    "padding_that_depends_on_the_stride": lambda: network(conv(4, 3, 2), conv(4, 1, 2)),
    "padding_on_one_side": lambda: network(conv(4, 2), conv(4, 1, 2)),
    "dilation": lambda: network(conv(4, 3, dilation_rate=2), conv(4, 1, 2)),
    "unequal_strides": lambda: network(conv(4, 3), conv(4, 1, (1, 2))),
    "nothing_to_save": lambda: network(L.MaxPooling2D(3, 1), conv(4, 1, 2)),
}


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_a_position_that_is_read_is_computed(build):
    model = build()
    found = _strides.early_strides(model)
    assert (found.model, found.layers) == (model, ())
    assert found.record() == {"larger_strides": []}


def random_network(seed):
    """Convolutions, sums, activations and branches as they come."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((int(rng.integers(9, 16)), int(rng.integers(9, 16)), 3))
    pool = [L.Conv2D(3, 1)(x)]
    for _ in range(int(rng.integers(4, 12))):
        x = pool[int(rng.integers(max(0, len(pool) - 2), len(pool)))]
        kind = rng.integers(6)
        alike = [other for other in pool if tuple(other.shape) == tuple(x.shape)]
        if kind == 0 and len(alike) > 1:
            x = L.Add()([x, alike[int(rng.integers(len(alike)))]])
        elif kind == 1:
            x = L.ReLU()(x)
        elif kind == 2 and min(x.shape[1:3]) > 4:
            x = L.Conv2D(3, 3, padding=str(rng.choice(["same", "valid"])), strides=int(rng.choice([1, 1, 2])))(x)
        else:
            x = L.Conv2D(3, 1, strides=int(rng.choice([1, 2, 2, 3])) if min(x.shape[1:3]) > 4 else 1)(x)
        pool.append(x)
    return keras.Model(inputs, [pool[-1], L.GlobalAveragePooling2D()(pool[len(pool) // 2])])


def test_random_networks_keep_their_outputs(randomised):
    changed = 0
    for seed in range(60):
        model = randomised(random_network(seed))
        found = _strides.early_strides(model)
        changed += bool(found.layers)
        x = np.random.default_rng(seed).normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
        for a, b in zip(found.model(x, training=False), model(x, training=False), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"network {seed}")
    assert changed > 10


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_a_resnet_of_the_paper_computes_the_end_of_its_stages_at_a_quarter_of_the_positions(name):
    """Of the last block of stages 2 to 4: its 3x3 (f to f channels) and its last 1x1 (f to 4 f)."""
    model = models.create(name, classes=10, input_shape=(224, 224, 3))
    found = _strides.early_strides(_fold.fold(model).model)
    assert len(found.layers) == 3
    work = [(224 // 4 // 2**i) ** 2 * (64 * 2**i) ** 2 * (9 + 4) for i in range(3)]
    before, after = found.multiply_adds
    assert before == models.describe(model).multiply_adds
    assert before - after == sum(work) * 3 // 4


@pytest.mark.parametrize("name", ["resnet50_v1_5", "resnet50_d", "resnet18", "vgg16_bn", "resnet_cifar20"])
def test_networks_with_the_stride_in_a_wider_kernel_stay(name):
    model = models.create(name, classes=10, input_shape=(64, 64, 3))
    assert _strides.early_strides(model).model is model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_export_says_which_strides_grew_and_how_much_work_is_left(export, preprocess, precision, randomised):
    x = inputs = keras.Input((12, 12, 3))
    x = L.BatchNormalization()(conv(8, 3, name="wide", use_bias=False)(x))
    x = L.ReLU()(x)
    x = L.GlobalAveragePooling2D()(conv(8, 1, 2, name="narrow")(x))
    folder = export(randomised(keras.Model(inputs, L.Dense(5)(x))), preprocess, list("abcde"), precision=precision)
    rewrites = json.loads((folder / "manifest.json").read_text())["rewrites"]
    assert rewrites["larger_strides"] == ["wide"]
    assert rewrites["multiply_adds_before"] == 144 * 27 * 8 + 36 * 8 * 8 + 8 * 5
    assert rewrites["multiply_adds_after"] == 36 * 27 * 8 + 36 * 8 * 8 + 8 * 5
    assert [step["rewrite"] for step in rewrites["steps"]][:2] == ["fold", "strides"]
