"""Parameters, multiply-adds, receptive fields and sizes against the papers and the published weights."""

import math

import keras
import numpy as np
import pytest

from dlkit import models

# name, arguments, trainable parameters, multiply-adds (exact here), the paper's multiply-adds, receptive field
ROWS = [
    ("alexnet", {"input_shape": (227, 227, 3)}, 60_965_224, None, 0.72e9, 195),
    ("alexnet", {}, 60_965_224, 724_406_816, 0.72e9, 195),
    ("alexnet_1", {}, 61_100_840, 714_188_480, 0.71e9, 195),
    ("vgg11", {}, 132_863_336, 7_609_090_048, 7.6e9, 150),
    ("vgg11_lrn", {}, 132_863_336, 7_609_090_048, 7.6e9, 150),
    ("vgg13", {}, 133_047_848, None, 11.3e9, 156),
    ("vgg16_c", {}, 133_638_952, None, None, 156),
    ("vgg16", {}, 138_357_544, 15_470_264_320, 15.5e9, 212),
    ("vgg19", {}, 143_667_240, None, 19.6e9, 268),
    ("resnet18", {}, 11_689_512, 1_814_073_344, 1.8e9, 435),
    ("resnet34", {}, 21_797_672, None, 3.6e9, 899),
    ("resnet50", {}, 25_557_032, 3_857_973_248, 3.8e9, 483),
    ("resnet101", {}, 44_549_160, None, 7.6e9, 1027),
    ("resnet152", {}, 60_192_808, None, 11.3e9, 1507),
    ("resnet50", {"version": "v1.5"}, 25_557_032, 4_089_184_256, 4.1e9, 427),
    ("resnet50", {"version": "v2"}, 25_549_352, None, 3.8e9, 483),
    ("resnet50", {"version": "d"}, 25_576_264, None, 4.35e9, None),
    ("plain34", {}, 21_797_672 - 64 * 128 - 128 * 256 - 256 * 512 - 2 * (128 + 256 + 512), None, 3.6e9, 899),
    ("resnet_cifar20", {}, 269_722, 40_551_040, 40.5e6, 81),
    ("resnet_cifar32", {}, 464_154, None, 69e6, None),
    ("resnet_cifar44", {}, 658_586, None, 97e6, None),
    ("resnet_cifar56", {}, 853_018, None, 125.5e6, None),
    ("resnet_cifar110", {}, 1_727_962, 252_887_680, 253e6, 501),
    ("resnet_cifar1202", {}, 19_421_274, 2_829_238_912, None, 5597),
    ("resnet_cifar164", {}, 1_703_258, None, None, None),
]
PAPER_MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


@pytest.mark.parametrize(("name", "arguments", "parameters", "exact", "paper", "field"), ROWS)
def test_published_numbers(name, arguments, parameters, exact, paper, field):
    model = models.create(name, initializer="zeros", **arguments)  # drawing 138 million numbers takes seconds
    found = models.describe(model)
    assert found.parameters == parameters
    assert sum(math.prod(w.shape) for w in model.trainable_weights) == parameters
    if exact is not None:
        assert found.multiply_adds == exact
    if paper is not None:
        assert abs(found.multiply_adds - paper) <= 0.03 * paper
    if field is not None:
        assert found.receptive_field == (field, field)
    depth = arguments.get("depth", int("".join(c for c in name if c.isdigit()) or 0))
    if name.startswith("resnet_cifar") and depth in PAPER_MILLIONS:
        digits = 1 if depth >= 110 else 2
        assert round(parameters / 1e6, digits) == PAPER_MILLIONS[depth]


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50", "resnet50_d", "resnet_cifar20"])
def test_every_convolution_has_the_size_of_the_formula(name):
    model = models.create(name, width=0.1)
    before = {id(layer.output): layer for layer in model.layers}
    checked = 0
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.MaxPooling2D):
            continue
        source, padding = layer.input, 0
        kernel = (layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size)[0]
        producer = before[id(source)]
        if isinstance(producer, keras.layers.ZeroPadding2D):
            ((padding, after), _), source = producer.padding, producer.input
            assert padding == after, f"{layer.name} pads {padding} before and {after} after"
        elif layer.padding == "same":
            assert layer.strides[0] == 1
            assert kernel % 2 == 1
            padding = kernel // 2
        length = source.shape[1]
        assert layer.output.shape[1] == (length + 2 * padding - (kernel - 1) - 1) // layer.strides[0] + 1, layer.name
        checked += 1
    assert checked >= 8


def test_depth_counts_the_layers_with_weights_on_the_main_path():
    for name, depth in [("resnet18", 18), ("resnet50", 50), ("resnet_cifar56", 56), ("vgg19", 19)]:
        model = models.create(name, width=0.05)
        main = [
            x.name for x in model.layers
            if isinstance(x, keras.layers.Conv2D | keras.layers.Dense) and "shortcut" not in x.name
        ]  # fmt: skip
        assert len(main) == depth


def test_both_columns_meet_only_in_the_third_convolution_and_the_dense_layers():
    model = models.alexnet(2, width=0.125, classes=10)
    groups = {f"conv{i}": model.get_layer(f"conv{i}").groups for i in range(1, 6)}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        np.testing.assert_array_equal(model.get_layer(name).bias, 1.0)
    for name in ("conv1", "conv3", "fc8"):
        np.testing.assert_array_equal(model.get_layer(name).bias, 0.0)


def test_224_and_227_pixels_give_the_same_layers_of_alexnet():
    a, b = (models.alexnet(2, width=0.05, input_shape=(n, n, 3)) for n in (224, 227))
    assert [w.shape for w in a.weights] == [w.shape for w in b.weights]
