"""One operation for two gives the same; two whose maps something else reads, or that do not fit, stay two."""

import json

import keras
import numpy as np
import pytest

from dlkit import models
from dlkit.export import _fold, _merge, _reduced
from dlkit.models._blocks import EdgePadding, GroupedConv2D

L = keras.layers


def conv(filters=8, size=1, strides=1, **keywords):
    return L.Conv2D(filters, size, strides=strides, padding="same", **keywords)


def block(left=conv, right=conv, add=None, shape=(9, 10, 6), more=None):
    """A block of a residual network that ends in the sum of two convolutions, of 2 and of 3 channels to 8."""
    x = inputs = keras.Input(shape)
    x = L.ReLU()(conv(2, name="start")(x))
    a = left(name="left")(L.ReLU()(conv(3, 3, name="middle")(x)))
    b = right(name="right")(x)
    y = L.ReLU()((add or L.Add(name="sum"))([a, b]))
    return keras.Model(inputs, y if more is None else [y, more(a)])


def network(*steps, shape=(9, 10, 4)):
    x = inputs = keras.Input(shape)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def of_stride(strides):
    return lambda **keywords: conv(8, 1, strides, **keywords)


def strided():
    """The shortcut reads every other position, the other convolution all of a map of half the size."""
    x = inputs = keras.Input((9, 10, 3))
    a = conv(8, 1, name="left")(conv(2, 3, 2)(x))
    return keras.Model(inputs, L.Add(name="sum")([a, conv(8, 1, 2, name="right")(x)]))


def without_bias(**keywords):
    return conv(use_bias=False, **keywords)


SUMS = {
    "block": block,
    "folded_normalisation": lambda: _fold.fold(network(conv(2), block(shape=(9, 10, 2)))).model,
    "one_without_bias": lambda: block(without_bias),
    "both_without_bias": lambda: block(without_bias, without_bias),
    "unequal_strides_of_layers": strided,
    "equal_strides": lambda: block(of_stride(2), of_stride(2)),
    "stride_3": lambda: block(of_stride(3), of_stride(3)),
    "of_any_size": lambda: block(shape=(None, None, 6)),
    "read_by_two": lambda: network(block(shape=(9, 10, 4)), lambda x: L.Concatenate()([L.ReLU()(x), conv(1)(x)])),
    "within_another_model": lambda: network(block(shape=(9, 10, 4)), conv(2, 3), L.GlobalAveragePooling2D()),
}


def outputs(model, size=9):
    shape = [size if n is None else n for n in model.inputs[0].shape[1:]]
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def same(first, second, size=9):
    for a, b in zip(outputs(first, size), outputs(second, size), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def kinds(model):
    return [type(layer).__name__ for layer in model._flatten_layers(include_self=False)]


@pytest.mark.parametrize("build", SUMS.values(), ids=SUMS)
def test_two_convolutions_that_are_added_become_one(build, randomised):
    model = randomised(build())
    found = _merge.merge(model)
    assert found.record() == {"merged_sums": ["sum"], "merged_paddings": []}
    assert "Add" in kinds(model)
    assert "Add" not in kinds(found.model)
    for size in (8, 9) if model.inputs[0].shape[1] is None else (9,):
        same(found.model, model, size)


def activated(**keywords):
    return conv(activation="relu", **keywords)


def channels_of(filters):
    return lambda **keywords: conv(filters, **keywords)


def called_twice():
    a, b, inputs = conv(8), conv(8), keras.Input((9, 10, 3))
    return keras.Model(inputs, [L.Add()([a(inputs), b(inputs)]), a(L.ReLU()(inputs))])


def added_twice():
    add, inputs = L.Add(), keras.Input((9, 10, 3))
    pairs = [[conv()(x), conv()(x)] for x in (inputs, L.ReLU()(inputs))]
    return keras.Model(inputs, [add(pair) for pair in pairs])


def by_keyword():
    inputs = keras.Input((9, 10, 3))
    return keras.Model(inputs, L.Add()([conv()(inputs=inputs), conv()(inputs)]))


def of_one():
    x = inputs = keras.Input((9, 10, 3))
    x = conv()(x)
    return keras.Model(inputs, L.Add()([x, x]))


def of_three():
    inputs = keras.Input((9, 10, 2))
    return keras.Model(inputs, L.Add()([conv()(inputs) for _ in range(3)]))


def and_a_third():
    x = inputs = keras.Input((9, 10, 8))
    x = conv(2)(x)
    return keras.Model(inputs, L.Add()([conv()(x), conv()(x), inputs]))


TWO = {
    "a_wider_kernel": lambda: block(lambda **kw: conv(8, 3, **kw)),
    "an_activation": lambda: block(activated),
    "unequal_precisions": lambda: block(lambda **kw: conv(dtype="mixed_bfloat16", **kw)),
    "a_sum_of_more_precision": lambda: block(*[lambda **kw: conv(dtype="mixed_bfloat16", **kw)] * 2),
    "groups": lambda: network(conv(2), lambda x: L.Add()([GroupedConv2D(8, 1, groups=2)(x), conv()(x)])),
    "inputs_wider_than_the_sum": lambda: block(channels_of(5), channels_of(5)),
    "another_reader": lambda: block(more=L.GlobalAveragePooling2D()),
    "an_output": lambda: block(more=lambda x: x),
    "a_layer_called_twice": called_twice,
    "a_sum_called_twice": added_twice,
    "a_layer_called_by_name": by_keyword,
    "one_map_twice": of_one,
    "three": of_three,
    "two_and_an_input": and_a_third,
    "a_product": lambda: block(add=L.Multiply()),
    "unequal_steps": lambda: block(of_stride((1, 2)), of_stride((1, 2))),
    "an_identity": lambda: network(conv(2), conv(8), lambda x: L.Add()([x, conv()(conv(2)(x))])),
}


def pool(size=3, strides=2, padding="valid", **keywords):
    return L.MaxPooling2D(size, strides, padding, name="max", **keywords)


# networks whose pooling does without the layer before it
PADDINGS = {
    "zeros_behind_relu": lambda: network(conv(), L.ReLU(), L.ZeroPadding2D(1), pool()),
    "behind_an_activation": lambda: network(conv(), L.Activation("relu"), L.ZeroPadding2D(1), pool()),
    "behind_relu6": lambda: network(conv(), L.Activation("relu6"), L.ZeroPadding2D(1), pool()),
    "behind_a_convolution_with_relu": lambda: network(activated(), L.ZeroPadding2D(1), pool()),
    "on_one_side": lambda: network(conv(), L.ReLU(), L.ZeroPadding2D(((0, 1), (2, 0))), pool((2, 4), (2, 3))),
    "the_edge_repeated": lambda: network(conv(), EdgePadding(), pool()),
    "the_edge_repeated_for_two": lambda: network(conv(), EdgePadding(), pool(2, 1)),
    "of_any_size": lambda: network(conv(), L.ReLU(), L.ZeroPadding2D(1), pool(), shape=(None, None, 4)),
    "as_the_output": lambda: network(L.ReLU(), L.ZeroPadding2D(1), pool()),
    "within_another_model": lambda: network(network(L.ReLU(), L.ZeroPadding2D(1), pool()), conv()),
}


@pytest.mark.parametrize("build", PADDINGS.values(), ids=PADDINGS)
def test_a_maximum_needs_no_padding_around_a_map_that_is_never_below_it(build, randomised):
    model = randomised(build())
    found = _merge.merge(model)
    assert found.record() == {"merged_sums": [], "merged_paddings": ["max"]}
    assert not {"ZeroPadding2D", "EdgePadding"} & set(kinds(found.model))
    for size in (8, 9) if model.inputs[0].shape[1] is None else (9,):
        for a, b in zip(outputs(found.model, size), outputs(model, size), strict=True):
            np.testing.assert_array_equal(a, b)


PADDED = {
    "values_below_zero": lambda: network(conv(), L.ZeroPadding2D(1), pool()),
    "a_slope_below_zero": lambda: network(L.ReLU(negative_slope=0.1), L.ZeroPadding2D(1), pool()),
    "another_activation": lambda: network(L.Activation("elu"), L.ZeroPadding2D(1), pool()),
    "windows_of_padding_alone": lambda: network(L.ReLU(), L.ZeroPadding2D(2), pool(2, 1)),
    "a_pooling_that_pads_too": lambda: network(L.ReLU(), L.ZeroPadding2D(1), pool(padding="same")),
    "a_mean": lambda: network(L.ReLU(), L.ZeroPadding2D(1), L.AveragePooling2D(3, 2)),
    "the_padded_map_is_read_elsewhere": lambda: network(
        L.ReLU(), L.ZeroPadding2D(1), lambda x: L.Concatenate()([pool(3, 1)(x), L.Cropping2D(1)(x)])
    ),
    "no_padding": lambda: network(L.ReLU(), pool()),
    "channels_first": lambda: network(
        L.ReLU(),
        L.ZeroPadding2D(1, data_format="channels_first"),
        pool(data_format="channels_first"),
    ),
}


@pytest.mark.parametrize("build", (TWO | PADDED).values(), ids=TWO | PADDED)
def test_what_does_not_fit_stays(build):
    model = build()
    found = _merge.merge(model)
    assert found.model is model
    assert found.record() == {"merged_sums": [], "merged_paddings": []}


@pytest.mark.parametrize(
    ("name", "sums"), [("resnet50", 4), ("resnet50_v1_5", 4), ("resnet50_d", 4), ("resnet18", 0), ("vgg16", 0)]
)
def test_the_stages_of_a_bottleneck_network_begin_with_one_convolution_less(name, sums, randomised):
    model = randomised(_fold.fold(models.create(name, classes=10, input_shape=(64, 64, 3))).model)
    found = _merge.merge(model)
    assert len(found.sums) == sums
    assert found.paddings == (() if name == "vgg16" else ("pool1",))
    counts = [kinds(each).count("Add") for each in (model, found.model)]
    assert counts[0] - counts[1] == sums
    assert models.describe(found.model).multiply_adds == models.describe(model).multiply_adds


def test_bfloat16_keeps_a_merged_network(randomised):
    model = randomised(network(block(shape=(9, 10, 4)), L.ReLU(), L.ZeroPadding2D(1), pool(), L.Flatten(), L.Dense(5)))
    found = _merge.merge(model)
    half = _reduced.bfloat16(found.model)
    assert "PaddedMaxPooling" in kinds(half)
    a, b = outputs(half)[0], outputs(model)[0]
    assert np.abs(a - b).max() < 0.02 * np.abs(b).max()


@pytest.mark.parametrize("optimize", ["fold", "freeze"])
def test_an_export_says_what_was_merged(export, preprocess, optimize, randomised):
    x = inputs = keras.Input((12, 12, 3))
    x = pool()(L.ZeroPadding2D(1)(L.ReLU()(L.BatchNormalization()(conv(4, 3)(x)))))
    x = L.ReLU()(L.Add(name="sum")([conv(8)(x), conv(8)(conv(2, 3)(x))]))
    model = randomised(keras.Model(inputs, L.Dense(5)(L.GlobalAveragePooling2D()(x))))
    folder = export(model, preprocess, list("abcde"), optimize=optimize)
    rewrites = json.loads((folder / "manifest.json").read_text())["rewrites"]
    assert (rewrites["merged_sums"], rewrites["merged_paddings"]) == (["sum"], ["max"])
    assert [step["rewrite"] for step in rewrites["steps"]][:2] == ["fold", "merge"]
