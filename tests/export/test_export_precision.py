"""bfloat16, the temperature chosen on validation data, and what an ensemble does not know."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit import models
from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays
from dlkit.export import _calibrate, _fold, _optimize, _reduced, saved_model
from dlkit.export._signatures import trace

LABELS = ["one", "two", "three"]
RNG = np.random.default_rng(3)


def source(count=90, side=16, classes=3):
    pixels = np.random.default_rng(1).integers(0, 255, (count, side, side, 3), np.uint8)
    return from_arrays(pixels, np.arange(count) % classes, classes=LABELS[:classes])


@pytest.fixture
def residual(randomised):
    keras.utils.set_random_seed(0)
    return randomised(models.resnet_cifar(8, classes=3, input_shape=(16, 16, 3), width=0.5))


def test_the_casts_are_operations_of_the_graph_and_weights_take_half_the_bytes(residual):
    folded = _fold.fold(residual).model
    half = _reduced.bfloat16(folded)
    x = tf.constant(RNG.normal(size=(4, 16, 16, 3)), tf.float32)
    core = trace(half, (16, 16, 3), ("logits",))
    nodes = [node for node in core.function.graph.as_graph_def().node if node.op == "Conv2D"]
    assert len(nodes) == 7
    assert {node.attr["T"].type for node in nodes} == {tf.bfloat16.as_datatype_enum}
    assert {weight.dtype for weight in half.weights if "dense" not in weight.path.lower()} >= {"bfloat16"}
    last = [layer for layer in half.layers if layer.weights][-1]
    assert last.dtype_policy.name == "float32"
    assert half.output.dtype == "float32"
    found, expected = core(x)["logits"].numpy(), folded(x, training=False).numpy()
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_bfloat16_export_is_half_as_large_and_says_what_every_rewrite_did(export, residual):
    folder = export(residual, Preprocess(16), LABELS, precision="bfloat16", verify_on=source())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"]["bytes"] < 0.55 * 4 * manifest["model"]["parameters"]
    steps = manifest["rewrites"]["steps"]
    assert [step["rewrite"] for step in steps] == ["fold", "bfloat16"]
    assert all(step["difference"] <= step["limit"] and step["milliseconds_after"] > 0 for step in steps)
    rows = {row["name"]: row for row in json.loads((folder / "verification.json").read_text())["checks"]}
    assert rows["preprocessed pixels"]["difference"] == 0.0
    assert rows["tensors logits"]["difference"] > 0
    assert "90 samples" in rows["accuracy on the labelled sample"]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [None, "freeze"])
def test_bfloat16_goes_with_every_optimisation(optimize, export, residual):
    folder = export(residual, Preprocess(16), LABELS, precision="bfloat16", optimize=optimize)
    assert json.loads((folder / "verification.json").read_text())["ok"]


def test_a_rewrite_that_changes_the_function_is_refused(export, residual, monkeypatch, tmp_path):
    right = _optimize.fold

    def wrong(model):
        folded = right(model)
        weight = folded.model.weights[0]
        weight.assign(weight * 1.5)
        return folded

    monkeypatch.setattr(_optimize, "fold", wrong)
    with pytest.raises(_optimize.ParityError, match=r"the rewrite 'fold' changes the outputs by"):
        export(residual, Preprocess(16), LABELS)
    assert not list(tmp_path.glob("net/[0-9]*"))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_that_overstated_the_logits(scale):
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20000, 4))
    targets = (true + rng.gumbel(size=true.shape)).argmax(-1)
    chosen = _calibrate.temperature(scale * true, targets)
    assert chosen == pytest.approx(scale, rel=0.05)
    values = np.linspace(0.9, 1.1, 21) * chosen  # no neighbour is better
    losses = [_calibrate.likelihood(scale * true, targets, value) for value in values]
    assert np.argmin(losses) == 10
    assert _calibrate.calibration_error(scale * true, targets, chosen) < 0.02


def test_calibration_divides_the_logits_of_the_probabilities_only(export, residual):
    validation = source()
    folder = export(residual, Preprocess(16), LABELS, calibrate=validation)
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["calibration"]
    assert record["temperature"] == manifest["temperature"] != 1.0
    assert record["samples"] == 90
    assert record["negative_log_likelihood"][1] < record["negative_log_likelihood"][0]
    x = RNG.normal(size=(4, 16, 16, 3)).astype("float32")
    served = tf.saved_model.load(str(folder)).signatures["tensors"](tensors=x)
    expected = residual(x, training=False).numpy()
    np.testing.assert_allclose(served["logits"], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(served["probabilities"], tf.nn.softmax(expected / manifest["temperature"]), atol=1e-5)
    assert "Temperature" in (folder / "README.md").read_text()


def test_calibration_that_cannot_be_meant_is_refused(residual, tmp_path):
    given = (residual, Preprocess(16), LABELS, tmp_path / "net")
    with pytest.raises(InputError, match=r"leave out temperature=2"):
        saved_model(*given, calibrate=source(), temperature=2)
    with pytest.raises(InputError, match=r"only on one side"):
        saved_model(*given, calibrate=source(classes=2))
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=r"shows only one class"):
        saved_model(*given, calibrate=from_arrays(pixels, np.zeros(4, int), classes=LABELS))
    assert not list(tmp_path.glob("net/[0-9]*"))


@pytest.mark.slow
def test_an_ensemble_tells_apart_what_is_noise_and_what_its_members_do_not_know(export, randomised):
    members = [randomised(models.cnn(classes=3, input_shape=(16, 16, 3)), seed) for seed in (0, 1)]
    model = models.ensemble(members)
    folder = export(model, Preprocess(16), LABELS)
    x = RNG.normal(size=(5, 16, 16, 3)).astype("float32")
    served = {k: v.numpy() for k, v in tf.saved_model.load(str(folder)).signatures["tensors"](tensors=x).items()}
    each = np.stack([tf.nn.softmax(member(x, training=False)).numpy().astype(float) for member in members])

    def entropy(p):
        return -np.sum(p * np.log(np.maximum(p, 1e-30)), -1)

    np.testing.assert_allclose(served["predictive_entropy"], entropy(each.mean(0)), atol=1e-4)
    expected = entropy(each.mean(0)) - entropy(each).mean(0)
    np.testing.assert_allclose(served["mutual_information"], expected, atol=1e-4)
    assert np.all(served["mutual_information"] <= served["predictive_entropy"] + 1e-5)
