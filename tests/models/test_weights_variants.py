"""Weights of a network with the same shapes and another function are refused, and the call that fits is named."""

import keras
import numpy as np
import pytest

from dlkit import models

torch = pytest.importorskip("torch")
from peers import Basic, Bottleneck, PreBasic, ResNet, randomise  # noqa: E402

W4, W3 = (8, 16, 32, 64), (8, 16, 32)
IMAGENET = {"classes": 7, "width": 0.125, "input_shape": (48, 48, 3)}
CIFAR = {"classes": 7, "width": 0.5, "input_shape": (16, 16, 3)}
DEPTH50 = (3, 4, 6, 3)


def file(tmp_path, net) -> str:
    torch.save(randomise(net).state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def refuse(model: keras.Model, path, pattern: str, **kw) -> None:
    before = model.get_weights()
    with pytest.raises(ValueError, match=pattern):
        models.load_weights(model, path, **kw)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def cifar(**kw) -> ResNet:
    return ResNet(Basic, (3, 3, 3), W3, 7, stem="cifar", head="linear", **kw)


def test_a_bottleneck_with_its_stride_elsewhere_is_refused(tmp_path):
    path = file(tmp_path, ResNet(Bottleneck, DEPTH50, W4, 7))
    refuse(
        models.resnet(50, "v1", **IMAGENET),
        path,
        r"version 'v1\.5' \(the model: 'v1'\)\. Build resnet\(50, version=\"v1\.5\"\)",
    )
    model = models.resnet(50, "v1", **IMAGENET)
    models.load_weights(model, path, version="v1")  # the caller knows better: converted from the authors' code
    net = ResNet(Bottleneck, DEPTH50, W4, 7, first=True).eval()
    net.load_state_dict(torch.load(path))
    x = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype("float32")
    with torch.no_grad():
        expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_two_3x3_blocks_have_no_other_stride_so_both_versions_take_the_weights(tmp_path):
    path = file(tmp_path, ResNet(Basic, (2, 2, 2, 2), W4, 7))
    for version in ("v1", "v1.5"):
        models.load_weights(models.resnet(18, version, **IMAGENET), path)


def test_zeros_on_another_side_are_refused(tmp_path):
    path = file(tmp_path, cifar(option="A"))
    refuse(models.resnet_cifar(20, pad="after", **CIFAR), path, r"pad 'split' \(the model: 'after'\).*pad=\"split\"")
    models.load_weights(models.resnet_cifar(20, pad="after", **CIFAR), path, pad="after")


def test_another_shortcut_is_refused(tmp_path):
    refuse(models.resnet_cifar(20, **CIFAR), file(tmp_path, cifar(name="shortcut")), r"shortcut 'B'.*shortcut=\"B\"")
    refuse(
        models.resnet_cifar(20, shortcut="B", **CIFAR),
        file(tmp_path, cifar(option="A")),
        r"shortcut 'A'.*shortcut=\"A\"",
    )


def test_another_epsilon_is_refused(tmp_path):
    path = file(tmp_path, cifar(option="A"))
    refuse(models.resnet_cifar(20, epsilon=1e-3, **CIFAR), path, r"epsilon 1e-05 \(the model: 0\.001\)")
    theirs = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    theirs.save_weights(tmp_path / "k.weights.h5")
    with pytest.warns(models.SmallMapWarning):
        ours = models.resnet(50, classes=3, input_shape=(32, 32, 3))
    refuse(
        ours, tmp_path / "k.weights.h5", r"epsilon 1\.001e-05 .*Build resnet\(50, version=\"v1\", epsilon=1\.001e-05\)"
    )
    with pytest.warns(models.SmallMapWarning):
        later = models.resnet(50, "v1.5", classes=3, input_shape=(32, 32, 3), epsilon=1.001e-5)
    refuse(later, tmp_path / "k.weights.h5", r"version 'v1' \(the model: 'v1\.5'\)")


def test_another_depth_family_stem_or_norm_is_refused_with_the_call_that_fits(tmp_path):
    path = file(tmp_path, cifar(option="A"))
    refuse(models.resnet_cifar(26, **CIFAR), path, r"blocks \(3, 3, 3\).*Build resnet_cifar\(20, ")
    refuse(models.resnet(18, **IMAGENET), path, r"family 'resnet_cifar'.*Build resnet_cifar\(20, ")
    refuse(models.resnet_cifar(20, norm="group", **CIFAR), path, "batch normalisation or none")
    refuse(models.resnet_cifar(20, stem="imagenet", **{**CIFAR, "input_shape": (40, 40, 3)}), path, "stem 'cifar'")
    path = file(tmp_path, ResNet(Basic, (3, 4, 6, 3), W4, 7))
    refuse(models.resnet(18, **IMAGENET), path, r"Build resnet\(34, ")


def test_a_plain_net_refuses_the_weights_of_a_residual_one(tmp_path):
    refuse(models.resnet_cifar(20, residual=False, **CIFAR), file(tmp_path, cifar(option="A")), "shortcut 'A'")


def test_pre_activation_that_splits_before_the_first_norm_is_refused(tmp_path):
    net = ResNet(PreBasic, (3, 3, 3), W3, 7, stem="cifar", head="linear", stem_norm=False)
    refuse(models.resnet_cifar(20, version="v2", shortcut="B", **CIFAR), file(tmp_path, net), "first block carries on")


def test_networks_that_no_builder_makes_are_refused_by_name(tmp_path):
    theirs = keras.applications.ResNet50V2(weights=None, input_shape=(32, 32, 3), classes=3)
    theirs.save_weights(tmp_path / "k.weights.h5")
    model = models.resnet(50, "v2", classes=3, input_shape=(33, 33, 3))
    refuse(model, tmp_path / "k.weights.h5", "ResNetV2, whose strides are in the last block")
    torch.save({"stages.0.blocks.0.norm1.weight": torch.ones(8)}, tmp_path / "t.pth")
    refuse(model, tmp_path / "t.pth", "timm's ResNetV2")
    torch.save({"encoder.weight": torch.ones(8, 8)}, tmp_path / "x.pth")
    refuse(model, tmp_path / "x.pth", "no ResNet, VGG or AlexNet")
    torch.save([torch.ones(2)], tmp_path / "y.pth")
    refuse(model, tmp_path / "y.pth", "a list instead of a dictionary")


def test_the_variant_survives_saving(tmp_path):
    for model in (models.resnet(50, "v1.5", width=0.1, input_shape=(64, 64, 3)), models.resnet_cifar(20, pad="after")):
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert models.variant(again) == models.variant(model)
    refuse(again, file(tmp_path, ResNet(Basic, (3, 3, 3), (16, 32, 64), 10, stem="cifar", option="A")), "pad 'split'")


def test_other_channels_and_classes_are_fitted_on_request(tmp_path):
    path = file(tmp_path, cifar(option="A"))
    grey = models.resnet_cifar(20, **{**CIFAR, "input_shape": (16, 16, 1), "classes": 5})
    refuse(grey, path, r"conv1/kernel is \(3, 3, 3, 8\).*adapt=True")
    head = models.named_weights(grey)["fc/kernel"].numpy()
    report = models.load_weights(grey, path, adapt=True)
    assert report.adapted == ("conv1/kernel", "fc/kernel (other classes, kept)", "fc/bias (other classes, kept)")
    np.testing.assert_array_equal(models.named_weights(grey)["fc/kernel"].numpy(), head)
    colour = models.resnet_cifar(20, **CIFAR, include_top=False)
    report = models.load_weights(colour, path)
    assert report.leftover == ("linear.weight", "linear.bias")
    assert not report.missing
    kernel = models.named_weights(colour)["conv1/kernel"].numpy()
    np.testing.assert_allclose(models.named_weights(grey)["conv1/kernel"].numpy(), kernel.sum(axis=2, keepdims=True))
    six = models.resnet_cifar(20, **{**CIFAR, "input_shape": (16, 16, 6)})
    models.load_weights(six, path, adapt=True)
    np.testing.assert_allclose(models.named_weights(six)["conv1/kernel"].numpy()[:, :, 3:], kernel / 2)
