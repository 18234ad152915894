"""Weights of other libraries' networks give the same logits here, with batch and with moving statistics."""

import keras
import numpy as np
import pytest

from dlkit import models

torch = pytest.importorskip("torch")
from peers import (  # noqa: E402
    VGG,
    AlexNet,
    Basic,
    Bottleneck,
    PreBasic,
    ResNet,
    TimmVGG,
    randomise,
)

W4, W3 = (8, 16, 32, 64), (8, 16, 32)


def cases() -> dict:
    """Returns name: (peer network, our builder, input size, does it have batch statistics?)."""
    slim = {"classes": 7, "width": 0.125}
    c3 = {"classes": 7, "width": 0.5, "input_shape": (16, 16, 3)}
    r = {**slim, "input_shape": (48, 48, 3)}
    v = {"classes": 7, "width": 0.125, "input_shape": (64, 64, 3), "dropout": 0.0}
    planes = (8, 16, 32, 64, 64)
    return {
        "torchvision resnet18": (
            lambda: ResNet(Basic, (2, 2, 2, 2), W4, 7), lambda: models.resnet(18, **r)),
        "torchvision resnet34 at an odd size": (
            lambda: ResNet(Basic, (3, 4, 6, 3), W4, 7), lambda: models.resnet(34, **{**r, "input_shape": (51, 45, 3)})),
        "torchvision resnet50": (
            lambda: ResNet(Bottleneck, (3, 4, 6, 3), W4, 7), lambda: models.resnet(50, "v1.5", **r)),
        "timm resnet50d": (
            lambda: ResNet(Bottleneck, (3, 4, 6, 3), W4, 7, deep=True, average=True),
            lambda: models.resnet(50, "d", **{**r, "input_shape": (51, 51, 3)})),
        "cifar resnet20, option A": (
            lambda: ResNet(Basic, (3, 3, 3), W3, 7, stem="cifar", head="linear", option="A", name="shortcut"),
            lambda: models.resnet_cifar(20, **c3)),
        "cifar resnet20, option A after": (
            lambda: ResNet(Basic, (3, 3, 3), W3, 7, stem="cifar", head="linear", option="A", split=False),
            lambda: models.resnet_cifar(20, pad="after", **c3)),
        "cifar resnet20, option B": (
            lambda: ResNet(Basic, (3, 3, 3), W3, 7, stem="cifar", head="linear", name="shortcut"),
            lambda: models.resnet_cifar(20, shortcut="B", **c3)),
        "resnet18 with a cifar stem": (
            lambda: ResNet(Basic, (2, 2, 2, 2), W4, 7, stem="cifar", head="linear", name="shortcut"),
            lambda: models.resnet(18, stem="cifar", **{**slim, "input_shape": (16, 16, 3)})),
        "cifar pre-activation": (
            lambda: ResNet(PreBasic, (3, 3, 3), W3, 7, stem="cifar", head="linear"),
            lambda: models.resnet_cifar(20, version="v2", shortcut="B", **c3)),
        "torchvision vgg11": (
            lambda: VGG((1, 1, 2, 2, 2), planes, 512, 7, 2, norm=False), lambda: models.vgg("A", **v)),
        "torchvision vgg16_bn": (
            lambda: VGG((2, 2, 3, 3, 3), planes, 512, 7, 2, norm=True), lambda: models.vgg("D", norm="batch", **v)),
        "plain vgg C": (
            lambda: VGG((2, 2, 3, 3, 3), planes, 512, 7, 2, norm=False, third=1), lambda: models.vgg("C", **v)),
        "timm vgg19": (
            lambda: TimmVGG((2, 2, 4, 4, 4), planes, 512, 7, 2), lambda: models.vgg("E", **v)),
        "torchvision alexnet": (
            lambda: AlexNet(1, (8, 24, 48, 32, 32), 512, 7, 2),
            lambda: models.alexnet(1, **{**v, "input_shape": (95, 95, 3)})),
        "two-column alexnet": (
            lambda: AlexNet(2, (12, 32, 48, 48, 32), 512, 7, 2),
            lambda: models.alexnet(2, **{**v, "input_shape": (95, 95, 3)})),
    }  # fmt: skip


CASES = cases()


def save(net, path, kind: str) -> None:
    state = net.state_dict()
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif kind == "legacy":  # as public CIFAR weights are written
        wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.7}
        torch.save(wrapped, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("name", list(CASES))
def test_same_logits_as_the_peer_with_moving_and_with_batch_statistics(name, tmp_path):
    make, build = CASES[name]
    net, model = randomise(make()), build()
    save(net, tmp_path / "w.th", "legacy")
    report = models.load_weights(model, tmp_path / "w.th", pad="after" if name.endswith("after") else None)
    assert not report.missing
    assert not report.leftover
    assert len(report.loaded) == len(models.named_weights(model)) - sum(
        "seed" in n for n in models.named_weights(model)
    )
    x = np.random.default_rng(1).normal(size=(3, *model.input_shape[1:])).astype("float32")
    picture = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    for training in (False, True):
        net.train(training)
        with torch.no_grad():
            expected = net(picture).numpy()
        found = np.asarray(model(x, training=training))
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "file"), [("zip", "w.pth"), ("zip", "w.pt"), ("legacy", "w.th"), ("safetensors", "w.safetensors")]
)
def test_every_file_format_gives_the_same_weights(kind, file, tmp_path):
    net = randomise(CASES["cifar resnet20, option A"][0]())
    save(net, tmp_path / file, kind)
    model = CASES["cifar resnet20, option A"][1]()
    models.load_weights(model, tmp_path / file)
    weights = models.named_weights(model)
    expected = net.state_dict()["layer2.1.conv2.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(weights["stage3_block2_conv2/kernel"].numpy(), expected)
    np.testing.assert_array_equal(weights["fc/kernel"].numpy(), net.linear.weight.detach().numpy().T)


def test_half_precision_and_bfloat16_files_are_read(tmp_path):
    net = randomise(CASES["cifar resnet20, option A"][0]())
    for kind in (torch.float16, torch.bfloat16):
        torch.save(
            {k: v.to(kind) if v.is_floating_point() else v for k, v in net.state_dict().items()}, tmp_path / "w.pt"
        )
        model = CASES["cifar resnet20, option A"][1]()
        models.load_weights(model, tmp_path / "w.pt")
        expected = net.conv1.weight.detach().to(kind).float().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(models.named_weights(model)["conv1/kernel"].numpy(), expected)


def applications(name: str) -> tuple[keras.Model, keras.Model]:
    """Returns keras.applications' network with random weights and statistics, and ours."""
    keras.utils.set_random_seed(3)
    shape = (64, 64, 3)
    if name == "resnet50":
        theirs = keras.applications.ResNet50(weights=None, input_shape=shape, classes=9, classifier_activation=None)
        ours = models.resnet(50, "v1", classes=9, input_shape=shape, epsilon=1.001e-5)
    else:
        theirs = keras.applications.VGG16(weights=None, input_shape=shape, include_top=False)
        ours = models.vgg("D", include_top=False, input_shape=shape)
    rng = np.random.default_rng(5)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape
            layer.set_weights(
                [rng.uniform(0.8, 1.2, n), rng.normal(0, 0.1, n), rng.normal(0, 0.1, n), rng.uniform(0.8, 1.2, n)]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
    return theirs, ours


@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_same_logits_as_keras_applications(name, suffix, tmp_path):
    if suffix != ".weights.h5" and name == "vgg16":
        pytest.skip("the formats are covered by the other network")
    theirs, ours = applications(name)
    path = tmp_path / f"w{suffix}"
    if suffix == ".weights.h5":
        theirs.save_weights(path)
    else:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras announces that .h5 is a legacy format
            theirs.save(path)
    report = models.load_weights(ours, path, source="keras")
    assert not report.missing
    assert not report.leftover
    assert bool(report.folded) == (name == "resnet50")
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype("float32")
    for training in (False, True):
        expected = np.asarray(theirs(x, training=training))
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(np.asarray(ours(x, training=training)) / scale, expected / scale, atol=1e-4, rtol=0)
