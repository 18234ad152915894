"""ONNX, OpenVINO and LiteRT files answer what was evaluated, and what does not is not published."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays
from dlkit.export import (
    VerificationError,
    _convert,
    _folders,
    _formats,
    _options,
    _packages,
    _runtimes,
    litert,
    onnx,
    verify,
)

LABELS = ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")


@pytest.fixture
def convert(checker, tmp_path):
    """Returns the export functions with the shared checking process instead of one of their own."""

    def call(form, model, preprocess, labels=LABELS, *, quantize=None, samples=None, verify_on=None, task=None):
        for package in _packages.PACKAGES[form]:
            pytest.importorskip(package)
        directory = tmp_path / form
        options = _options.checked(labels, directory, None, "fold", "float32", task, 1.0, None, form, quantize)
        shape = _options.input_shape(model, preprocess)
        with _folders.writing(directory) as scratch:
            made = _formats.ConvertedExport(model, preprocess, shape, options, samples)
            return made.write(verify_on, checker, scratch)

    return call


def pictures(count=60):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 255, (count, 12, 12, 3), np.uint8)
    return from_arrays(pixels, rng.integers(0, len(LABELS), count), classes=LABELS)


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "litert"])
def test_a_converted_network_is_checked_and_verifies_again(form, convert, tiny, preprocess):
    folder = convert(form, tiny(), preprocess)
    report = json.loads((folder / "verification.json").read_text())
    names = {check["name"] for check in report["checks"]}
    assert {
        "tensors logits",
        "tensors probabilities of the evaluation",
        "a row does not depend on its neighbours",
    } <= names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["form"], manifest["rewrites"]["folded_batch_norms"]) == (form, 2)
    assert sorted(manifest["signatures"]["tensors"]["outputs"]) == ["logits", "probabilities"]
    assert (folder / "assets" / "labels.txt").read_text().splitlines() == list(LABELS)
    x = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype("float32")
    found = _runtimes.Runtime(form, folder)(x)
    np.testing.assert_allclose(found["logits"], tiny()(x, training=False), atol=1e-4)


@pytest.mark.slow
def test_eight_bits_take_a_quarter_and_keep_the_classes(convert, tiny, preprocess):
    samples = pictures()
    folder = convert("litert", tiny(), preprocess, quantize="int8", samples=samples, verify_on=samples)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quantize"] == "int8"
    rows = {c["name"]: c for c in json.loads((folder / "verification.json").read_text())["checks"]}
    assert rows["tensors logits"]["difference"] > 1e-3  # it is not the float32 file
    assert rows["accuracy on the labelled sample"]["ok"]
    assert verify(folder).ok
    check_slimness((folder / "model.tflite").read_bytes())


def check_slimness(content):
    """No long names or ranges inside, equal vectors once, weights where a processor wants them."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    graph = model.Subgraphs(0)
    outside = {*graph.InputsAsNumpy(), *graph.OutputsAsNumpy()}
    inner = [graph.Tensors(i) for i in range(graph.TensorsLength()) if i not in outside]
    assert all(tensor.Name().isdigit() and tensor.Quantization().MinLength() == 0 for tensor in inner)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert {start % 16 for start in starts} == {0}
    values = {
        model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        for tensor in inner
        if model.Buffers(tensor.Buffer()).DataLength()
    }
    assert len({*starts}) <= len(values) + 4  # and what the converter notes about itself


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "litert"])
def test_exact_gelu_and_half_precision_convert_by_way_of_float32(form, convert, preprocess, randomised):
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16")(inputs)
    x = keras.layers.Activation("gelu", dtype="mixed_bfloat16")(x)
    outputs = keras.layers.Dense(5, dtype="float32")(keras.layers.GlobalAveragePooling2D()(x))
    folder = convert(form, randomised(keras.Model(inputs, outputs)), preprocess)
    assert json.loads((folder / "verification.json").read_text())["max_difference"] < 1e-4


def test_a_conversion_that_exchanges_two_outputs_is_not_published(convert, tiny, preprocess, monkeypatch, tmp_path):
    pytest.importorskip("ai_edge_litert")
    right = _convert._named

    def exchanged(graph, constant, function):
        constant.outputs.reverse()
        return right(graph, constant, function)

    monkeypatch.setattr(_convert, "_named", exchanged)
    with pytest.raises(VerificationError, match=r"tensors logits"):
        convert("litert", tiny(), preprocess)
    assert not [entry for entry in (tmp_path / "litert").glob("*") if entry.name != ".lock"]


@pytest.mark.parametrize("form", _packages.PACKAGES)
def test_a_missing_package_is_named_in_one_line_before_work_starts(form, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf'is not installed: pip install "dlkit\[{form}\]"'):
        getattr(_formats, form)(None, None, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantize": "int4"}, r"unknown quantize 'int4'; did you mean 'int8'"),
        ({"quantize": "int8"}, r"int8 needs samples"),
        ({"samples": "train"}, r"float32 needs none"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(given, message, tiny, preprocess, tmp_path):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(InputError, match=message):
        litert(tiny(), preprocess, LABELS, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_one_folder_holds_one_form(exported, tiny, preprocess):
    for package in _packages.PACKAGES["onnx"]:
        pytest.importorskip(package)
    with pytest.raises(InputError, match=r"holds versions in the form saved_model"):
        onnx(tiny(), preprocess, LABELS, exported.parent)


def test_a_model_without_a_graph_is_refused(preprocess, tmp_path):
    pytest.importorskip("ai_edge_litert")

    class Opaque(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(5)

        def call(self, x, training=None):
            return self.dense(keras.ops.mean(x, axis=(1, 2)))

    model = Opaque()
    model(np.zeros((1, 12, 12, 3), "float32"), training=False)
    with pytest.raises(InputError, match=r"is no functional or sequential model, and litert rewrites its graph"):
        litert(model, Preprocess(12), LABELS, tmp_path / "out")


def test_large_weights_pass_by_the_onnx_converter_and_are_all_in_the_file(tmp_path):
    library = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    inputs = keras.Input((4, 4, 256))
    shared = keras.layers.Dense(1024)
    x = keras.layers.Conv2D(512, 3)(inputs)  # its weight is transposed, those of the others are not
    x = keras.layers.Dense(1024)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, shared(shared(x)))
    spec = tf.TensorSpec((None, 4, 4, 256), tf.float32)
    call = tf.function(lambda tensors: {"logits": model(tensors, training=False)}, input_signature=[spec])
    function = _convert.frozen(call.get_concrete_function(), erfc=False)
    light, weights = _convert._without_large_weights(function.graph.as_graph_def())
    assert sorted(w.size for w in weights.values()) == [1024 * 1024, 9 * 256 * 512]
    assert light.ByteSize() < 4e6 < function.graph.as_graph_def().ByteSize()
    _convert.to_onnx(function, tmp_path / "model.onnx")
    assert [given.name for given in library.load(tmp_path / "model.onnx").graph.input] == ["tensors"]
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 256)).astype(np.float32)
    answer = runtime.InferenceSession(tmp_path / "model.onnx").run(["logits"], {"tensors": x})[0]
    np.testing.assert_allclose(answer, model(x, training=False), atol=2e-5)
