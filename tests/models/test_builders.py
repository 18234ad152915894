"""What the builders accept, refuse and promise, and the tools around them."""

import io
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from dlkit import models
from dlkit.models._blocks import EdgePadding, GroupedConv2D, Parts
from dlkit.models._residual import PadShortcut

SLIM = {"width": 0.1, "classes": 4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("resnet5O"), "did you mean 'resnet50'"),
        (lambda: models.create("resnet50", nrom="batch"), "unknown argument of resnet 'nrom'; did you mean 'norm'"),
        (lambda: models.resnet(51), "depth=51 must be one of 18, 34, 50, 101, 152"),
        (lambda: models.resnet(50, "v3"), "unknown ResNet version 'v3'; did you mean"),
        (lambda: models.resnet(50, stem="imagnet"), "unknown stem 'imagnet'; did you mean 'imagenet'"),
        (lambda: models.resnet(50, shortcut="C"), "unknown shortcut option 'C'"),
        (lambda: models.resnet(50, stochastic_depth=1.0), "stochastic_depth=1.0 must be at least 0 and below 1"),
        (lambda: models.resnet_cifar(21), r"depth=21 must be 6n\+2 with basic blocks, such as 20 or 26"),
        (lambda: models.resnet_cifar(3), "such as 8 or 14"),
        (
            lambda: models.resnet_cifar(22, "bottleneck"),
            r"depth=22 must be 9n\+2 with bottleneck blocks, such as 20 or 29",
        ),
        (lambda: models.resnet_cifar(20, "botleneck"), "did you mean 'bottleneck'"),
        (lambda: models.resnet_cifar(20, version="d"), "unknown ResNet version 'd'"),
        (lambda: models.resnet_cifar(20, pad="left"), "unknown placement"),
        (lambda: models.vgg("F"), "unknown VGG configuration 'F'"),
        (lambda: models.alexnet(3), "columns=3 must be 2"),
        (lambda: models.vgg("A", input_shape=(20, 20, 3)), "20 x 20 pixels is too small; the smallest is 32"),
        (lambda: models.alexnet(2, input_shape=(40, 60, 3)), "the smallest is 63"),
        (lambda: models.resnet(50, input_shape=(16, 16, 3)), "the smallest is 17"),
        (lambda: models.resnet_cifar(20, input_shape=(2, 2, 3)), "the smallest is 3"),
        (lambda: models.cnn(4, input_shape=(8, 8, 1)), "the smallest is 16"),
        (lambda: models.vgg("A", input_shape=(None, None, 3)), "the dense layers need known sizes"),
        (lambda: models.vgg("A", input_shape=(64, 64)), "has 2 numbers, expected 3"),
        (lambda: models.vgg("A", input_shape=64), "must be a tuple such as"),
        (lambda: models.vgg("A", input_shape=(64, 64, 0)), "positive whole numbers"),
        (lambda: models.vgg("A", classes=0), "classes=0 must be a positive whole number"),
        (lambda: models.vgg("A", width=0), "width=0 must be a positive number"),
        (lambda: models.vgg("A", norm="btach"), "did you mean 'batch'"),
        (lambda: models.vgg("A", activation="rleu"), "did you mean 'relu'"),
        (lambda: models.vgg("A", initializer="hee"), "did you mean 'he'"),
        (lambda: models.mlp((0,)), "units=.* must be positive whole numbers"),
        (lambda: models.cnn(2, (1, 2, 3)), "has 3 numbers for 2 blocks"),
        (lambda: models.cnn(downsample="mean"), "unknown downsample 'mean'"),
        (lambda: models.cnn(padding=-1), "padding=-1"),
        (lambda: models.cnn(dense=-1), "dense=-1 must be a number of layers"),
        (lambda: models.cnn(units=0), "units=0 must be a positive whole number"),
        (lambda: models.cnn(14), "the smallest is more than 4096 pixels"),
        (lambda: models.cifar_fast(filters=64), "filters=64 a tuple of them"),
        (lambda: models.mlp(classifier_activation="sofmax"), "did you mean 'softmax'"),
        (lambda: models.cifar_fast(classifier_activation="sofmax"), "did you mean 'softmax'"),
        (lambda: models.localizer(models.resnet_cifar(8, **SLIM), activation="sigmoyd"), "did you mean 'sigmoid'"),
        (lambda: models.ensemble([models.mlp((2,), classes=1) for _ in range(2)]), "one output"),
        (lambda: models.ensemble([models.mlp((2,), classifier_activation="sigmoid")] * 2), "ends in sigmoid"),
        (lambda: models.ensemble([models.mlp((2,))]), "at least two"),
        (lambda: models.ensemble([models.mlp((2,)), models.mlp((2,), classes=3)]), "all must agree"),
        (lambda: models.localizer(models.mlp((2,))), "no layers named stage1"),
        (lambda: models.describe("resnet50"), "is no Keras model"),
        (lambda: models.grow(models.mlp((2,)), "D"), "is no VGG of this package"),
        (lambda: models.grow(models.vgg("D", width=0.02, input_shape=(32, 32, 3), stem="cifar"), "A"), "grow upwards"),
    ],
)
def test_wrong_input_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_last_map_of_one_pixel_is_a_warning_at_build_and_in_the_description():
    with pytest.warns(models.SmallMapWarning, match='the last map is 1x1.*33 pixels.*stem="cifar"'):
        model = models.resnet(50, input_shape=(32, 32, 3), **SLIM)
    assert "the last map is 1x1" in models.describe(model).warnings[0]
    assert models.describe(models.resnet(50, stem="cifar", input_shape=(32, 32, 3), **SLIM)).warnings == ()
    assert models.resnet(18, stem="auto", input_shape=(32, 32, 3), include_top=False, **SLIM).output_shape[1] == 4


DEEP = ("resnet101", "resnet152", "resnet_cifar110", "resnet_cifar164")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEEP else []) for n in models.names()]
)
def test_every_name_builds_a_slim_copy_and_describes_it(name):
    kw = {"width": 0.05} if name != "mlp" else {}
    model = models.create(name, classes=3, **kw)
    found = models.describe(model)
    assert model.output_shape == (None, 3)
    assert sum(row.parameters for row in found.layers) == found.parameters
    assert found.multiply_adds > 0


def test_any_channel_count_and_rectangles_are_accepted():
    for channels in (1, 4):
        assert models.resnet_cifar(8, input_shape=(12, 20, channels), **SLIM).output_shape == (None, 4)
    model = models.resnet(18, input_shape=(None, None, 3), **SLIM)
    for size in (40, 64):
        assert model(np.zeros((1, size, size + 3, 3), "float32"), training=False).shape == (1, 4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"kind": "inception", "norm": "batch"}, {"downsample": "stride"}])
def test_cnn_works_on_signals_pictures_and_video(rank, options):
    shape = (16,) * rank + (2,)
    model = models.cnn(2, 1, (8,), input_shape=shape, filters=8, classes=3, **options)
    assert model(np.zeros((2, *shape), "float32"), training=False).shape == (2, 3)
    conv = next(layer for layer in model.layers if "Conv" in type(layer).__name__)
    assert type(conv).__name__ == f"Conv{rank}D"


def test_cnn_follows_the_template_and_its_options():
    model = models.cnn((2), (2, 1), (16, 8), input_shape=(16, 16, 3), norm="batch", norm_position="after", dropout=0.5)
    names = [layer.name for layer in model.layers]
    assert names[:8] == [
        "image",
        "conv1_1",
        "conv1_1_act",
        "conv1_1_norm",
        "conv1_2",
        "conv1_2_act",
        "conv1_2_norm",
        "pool1",
    ]
    assert names[-8:] == ["fc1", "fc1_act", "fc1_dropout", "fc2", "fc2_act", "fc2_dropout", "fc3", "predictions"]
    dilated = models.cnn(1, 1, 0, kernel=3, dilation=2, padding=0, downsample="none", input_shape=(16, 16, 1))
    assert dilated.get_layer("conv1_1").output.shape[1] == 12  # (16 - 2 * 2 - 1) / 1 + 1
    strided = models.cnn(1, 1, 0, kernel=5, strides=3, padding=1, downsample="none", input_shape=(16, 16, 1))
    assert strided.get_layer("conv1_1").output.shape[1] == (16 + 2 - 4 - 1) // 3 + 1
    mean = models.cnn(2, 1, 0, head="average", input_shape=(None, None, 3))
    assert mean.output_shape == (None, 10)


def test_inception_splits_its_larger_filters_into_lines():
    model = models.create("inception", input_shape=(16, 16, 3))
    kernels = {layer.kernel_size for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    assert kernels == {(1, 1), (3, 1), (1, 3), (5, 1), (1, 5)}
    assert model.get_layer("conv1_1_concat").output.shape[-1] == 32


def test_zero_gamma_starts_every_block_as_the_identity():
    model = models.resnet_cifar(14, zero_gamma=True, version="v1", width=0.5)
    last = [layer for layer in model.layers if layer.name.endswith("_norm2")]
    assert all(np.all(np.asarray(layer.gamma) == 0) for layer in last)
    block = keras.Model(model.get_layer("stage2_block1_out").output, model.get_layer("stage2_block2_out").output)
    x = np.abs(np.random.default_rng(0).normal(size=(2, 32, 32, 8))).astype("float32")
    np.testing.assert_array_equal(block(x, training=False), x)


def test_stochastic_depth_grows_linearly_to_the_last_block():
    model = models.resnet_cifar(20, stochastic_depth=0.45, width=0.5)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop")]
    np.testing.assert_allclose(rates, np.arange(1, 10) / 9 * 0.45)


def test_option_a_pads_half_before_and_half_after_or_all_after():
    x = np.arange(1.0, 17.0, dtype="float32").reshape(1, 4, 4, 1)
    split = np.asarray(PadShortcut(3, 2, "split")(x))
    after = np.asarray(PadShortcut(3, 2, "after")(x))
    kept = x[:, ::2, ::2, 0]
    np.testing.assert_array_equal(split[..., 1], kept)
    np.testing.assert_array_equal(after[..., 0], kept)
    assert split.sum() == after.sum() == kept.sum()


def test_padding_never_wins_a_maximum_of_negative_values():
    x = -np.abs(np.random.default_rng(0).normal(size=(2, 9, 8, 3))).astype("float32") - 1
    pooled = keras.layers.MaxPooling2D(3, 2)(EdgePadding()(x))
    infinite = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(infinite, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(pooled, windows.max((-1, -2)))
    assert any(isinstance(a, EdgePadding) for a in models.resnet(18, activation="swish", **SLIM).layers)


def test_endpoints_are_the_stages_maps():
    def sizes(model):
        return {name: tensor.shape[1] for name, tensor in models.endpoints(model).items()}

    assert sizes(models.resnet(50, **SLIM)) == {"conv1": 112, "stage2": 56, "stage3": 28, "stage4": 14, "stage5": 7}
    assert sizes(models.resnet(50, "v2", **SLIM)) == {
        "conv1": 112,
        "stage2": 56,
        "stage3": 28,
        "stage4": 14,
        "stage5": 7,
    }
    assert sizes(models.vgg("A", **SLIM)) == {"conv1": 224, "conv2": 112, "conv3": 56, "conv4": 28, "conv5": 14}
    assert sizes(models.alexnet(2, **SLIM)) == {"conv1": 55, "conv2": 27, "conv5": 13}
    assert sizes(models.resnet_cifar(20)) == {"stage2": 32, "stage3": 16, "stage4": 8}
    backbone = models.resnet(18, include_top=False, input_shape=(64, 64, 3), width=0.1)
    maps = keras.Model(backbone.input, models.endpoints(backbone))
    assert set(maps(np.zeros((1, 64, 64, 3), "float32"), training=False)) == {
        "conv1",
        "stage2",
        "stage3",
        "stage4",
        "stage5",
    }


def test_an_ensemble_averages_probabilities_and_measures_disagreement(tmp_path):
    members = [models.resnet_cifar(8, input_shape=(8, 8, 3), **SLIM) for _ in range(3)]
    pair = models.ensemble(members)
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    found = pair(x, training=False)
    p = np.stack([np.asarray(keras.ops.softmax(m(x, training=False))) for m in members]).astype("float64")
    np.testing.assert_allclose(found["probabilities"], p.mean(0), atol=1e-6)

    def entropy(q):
        return -(q * np.log(q)).sum(-1)

    expected = (entropy(p.mean(0)) - entropy(p).mean(0)) / np.log(4)
    np.testing.assert_allclose(found["disagreement"], expected, atol=1e-6)
    paths = [w.path for w in pair.weights]
    assert len(set(paths)) == len(paths)
    pair.save(tmp_path / "e.keras")
    again = keras.models.load_model(tmp_path / "e.keras")
    np.testing.assert_array_equal(again(x, training=False)["probabilities"], found["probabilities"])
    same = models.ensemble([members[0], members[0]])(x, training=False)
    np.testing.assert_allclose(same["disagreement"], 0.0, atol=1e-6)


def test_an_ensemble_of_looped_networks_keeps_their_names_apart(monkeypatch):
    from dlkit.models import _resnet_cifar

    monkeypatch.setattr(_resnet_cifar, "FLAT", 1)
    members = [models.resnet_cifar(20, input_shape=(8, 8, 3), **SLIM) for _ in range(2)]
    pair = models.ensemble(members)
    weights = models.named_weights(pair)
    assert len(weights) == 2 * len(models.named_weights(members[0]))
    for k, member in enumerate(members, 1):
        expected = models.named_weights(member)["stage3_block2_conv1/kernel"].numpy()
        np.testing.assert_array_equal(weights[f"member{k}_stage3_block2_conv1/kernel"].numpy(), expected)


def test_a_grouped_convolution_is_that_of_keras_and_needs_no_compiler():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 6)).astype("float32")
    given = {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "groups": 2}
    ours, theirs = GroupedConv2D(**given), keras.layers.Conv2D(**given)
    y = ours(x)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(y, theirs(x), atol=1e-5)
    model = models.create("alexnet", classes=3, input_shape=(32, 32, 3), width=0.125, stem="cifar")
    assert [layer.name for layer in model.layers if isinstance(layer, GroupedConv2D)] == ["conv2", "conv4", "conv5"]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        graph = tf.function(model).get_concrete_function(tf.TensorSpec([None, 32, 32, 3])).graph.as_graph_def()
        assert not any("_XlaMustCompile" in function.attr for function in graph.library.function)


def test_grouped_convolutions_refuse_odd_channel_counts():
    with pytest.raises(ValueError, match="conv2: 2 groups need channel counts that 2 divides, got 3 in and 4 out"):
        Parts().conv(keras.Input((8, 8, 3)), 4, 3, name="conv2", groups=2)


def test_the_documentation_lists_every_model_with_its_numbers():
    table = Path(__file__).parents[2].joinpath("docs", "models.md").read_text()
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `") and line.count("|") > 9}
    assert list(rows) == models.names()
    for name in ("resnet_cifar20", "inception", "resnet18"):
        found = models.describe(models.create(name))
        assert f" {found.parameters:,} | {found.multiply_adds:,} | {found.receptive_field[0]} |" in rows[name]


def test_an_ensemble_takes_probabilities_as_they_are_and_refuses_a_mixture():
    soft = [models.mlp((4,), input_shape=(3,), classes=3, classifier_activation="softmax") for _ in range(2)]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    found = models.ensemble(soft)(x, training=False)["probabilities"]
    np.testing.assert_allclose(found, np.mean([m(x, training=False) for m in soft], axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="some in logits"):
        models.ensemble([soft[0], models.mlp((4,), input_shape=(3,), classes=3)])


@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_a_localizer_learns_one_box_and_keeps_the_backbones_weights(pooling):
    backbone = models.resnet_cifar(8, input_shape=(8, 8, 3), **SLIM)
    model = models.localizer(backbone, pooling=pooling)
    assert model.output_shape == (None, 4)
    np.testing.assert_array_equal(model.get_layer("conv1").kernel, backbone.get_layer("conv1").kernel)
    y = np.asarray(model(np.zeros((2, 8, 8, 3), "float32"), training=False))
    assert y.dtype == np.float32
    assert np.all((y > 0) & (y < 1))


def test_a_localizer_takes_signals_too():
    backbone = models.cnn(2, 1, 0, input_shape=(16, 2), head="average")
    assert models.localizer(backbone, pooling="average").output_shape == (None, 4)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.13])
def test_growing_finds_the_width_again(width):
    model = models.vgg("A", width=width, include_top=False, input_shape=(32, 32, 3), stem="cifar")
    grown = models.grow(model, "B")
    assert [grown.get_layer(f"conv{s}_2").filters for s in range(1, 6)] == [
        model.get_layer(f"conv{s}_1").filters for s in range(1, 6)
    ]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("start", "end"), [("A", "B"), ("A", "D"), ("B", "C"), ("C", "D"), ("D", "E")])
def test_growing_with_identity_keeps_the_function(start, end, norm):
    kw = {"width": 0.0625, "classes": 5, "input_shape": (32, 32, 3), "stem": "cifar", "initializer": "he", "norm": norm}
    model = models.vgg(start, **kw)
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    model(x, training=True)  # moves the averages
    grown = models.grow(model, end, init="identity")
    expected = np.asarray(model(x, training=False))
    np.testing.assert_allclose(grown(x, training=False), expected, rtol=1e-4, atol=1e-5)
    assert models.variant(grown)["depths"] == models.variant(models.vgg(end, **kw))["depths"]


def test_growing_at_random_keeps_old_layers_and_draws_new_ones():
    model = models.vgg(
        "A", norm="group", activation="swish", width=0.0625, input_shape=(32, 32, 3), stem="cifar", classes=5
    )
    grown = models.grow(model, "D")
    np.testing.assert_array_equal(model.get_layer("conv4_2").kernel, grown.get_layer("conv4_2").kernel)
    np.testing.assert_array_equal(model.get_layer("fc7").kernel, grown.get_layer("fc7").kernel)
    assert np.asarray(grown.get_layer("conv4_3").kernel).std() > 0.01
    with pytest.raises(ValueError, match=r"identity.*Swish changes what passes twice|impossible through GroupNorm"):
        models.grow(model, "D", init="identity")


def test_a_description_is_json_a_table_and_a_picture(tmp_path):
    found = models.describe(models.resnet_cifar(20))
    content = json.loads(found.to_json())
    assert content["parameters"] == 269_722
    assert content["layers"][0]["name"] == "conv1"
    from rich.console import Console

    console = Console(record=True, width=140, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    assert "stage4_block3_conv2" in text
    assert "269,722" in text
    picture = found.save_picture(tmp_path / "net.svg").read_text()
    assert picture.startswith("<svg")
    assert picture.count("<rect") == 1 + 4  # background, three stages, classifier
    with pytest.raises(ValueError, match=r"ends in \.svg"):
        found.save_picture(tmp_path / "net.png")


def test_any_keras_model_is_described():
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.SeparableConv2D(8, 3, strides=2, padding="same"),
            keras.layers.DepthwiseConv2D(3, padding="same"),
            keras.layers.Conv2DTranspose(4, 2, strides=2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5),
        ]
    )
    costs = [row.multiply_adds for row in models.describe(model).layers]
    assert costs == [8 * 8 * (27 + 24), 8 * 8 * 72, 8 * 8 * 4 * 32, 0, 20]
    inner = models.mlp((4,), input_shape=(3,))
    nested = keras.Model(inner.input, keras.layers.Dense(2)(inner(inner.input)))
    assert models.describe(nested).parameters == nested.count_params()
    unknown = models.resnet_cifar(8, input_shape=(None, None, 3))
    assert models.describe(unknown).multiply_adds is None
    assert models.describe(unknown).receptive_field == (25, 25)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = keras.layers.Dense(2)

        def build(self, shape):
            self.fc.build(shape)

        def call(self, x, training=None):
            return self.fc(x)

    own = Own()
    own.build((None, 3))
    assert models.describe(own).parameters == 8


def test_cifar_fast_begins_as_the_identity_after_its_patches_and_takes_other_norms_and_starts():
    model = models.cifar_fast()
    kernel = np.array(model.get_layer("conv2_2").kernel)
    assert kernel[1, 1].tolist() == np.eye(256).tolist()
    assert model.get_layer("patches").kernel.shape == (2, 2, 3, 24)
    assert model.get_layer("conv1_1_norm").gamma is None
    assert model.get_layer("conv1_1_norm").momentum == 0.6
    plain = models.cifar_fast(norm="none", initializer="he", input_shape=(None, None, 1), patch=3, **SLIM)
    assert plain.get_layer("conv1_1").use_bias
    assert plain(np.zeros((2, 20, 24, 1), "float32"), training=False).shape == (2, 4)
    with pytest.raises(ValueError, match="patch=0"):
        models.cifar_fast(patch=0)
