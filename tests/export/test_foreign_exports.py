"""An export of somebody else: manifest, samples and graph are checked before they are used."""

import io
import json
import shutil
import time
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from dlkit._errors import InputError
from dlkit.export import _cases, _manifest, _operations, predict, verify


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "animals" / "1")


PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def declared(shape):
    """A header for `shape` without the numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


SAMPLES = {
    "a pickle": ({"expected.npy": npy(np.array([{"a": 1}], object))}, r"declares object"),
    "another name": ({"../../evil.npy": npy(np.zeros(1))}, r"is no sample of an export"),
    "no array": ({"expected.py": b"print()"}, r"is no sample of an export"),
    "ten gigabytes declared": ({"expected.npy": declared((2_500_000_000,))}, r"and holds something else"),
    "nonsense": ({"expected.npy": b"nonsense"}, r"is damaged"),
    "nothing expected": ({"file_0.npy": npy(np.frombuffer(PNG, np.uint8))}, r"one expected output per sample"),
    "a text for a picture": ({"file_0.npy": npy(np.zeros(4, np.uint8))}, r"is damaged"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_are_none_are_refused_at_once(case, copy):
    members, message = SAMPLES[case]
    with zipfile.ZipFile(copy / _manifest.SAMPLES, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for _ in range(2):  # the first picture that a process decodes pays for TensorFlow's first use: up to a second
        started = time.process_time()
        with pytest.raises(InputError, match=message):
            verify(copy)
    assert time.process_time() - started < 1.0
    assert not (copy.parent.parent / "evil.npy").exists()


def test_samples_that_unpack_to_more_than_an_export_has_are_refused(copy):
    with zipfile.ZipFile(copy / _manifest.SAMPLES, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("expected.npy", bytes(_cases.LARGEST + 1))
    with pytest.raises(InputError, match=r"is no sample of an export"):
        verify(copy)


MANIFESTS = {
    "a list": [],
    "labels that are numbers": {"labels": [1, 2]},
    "a signature without inputs": {"signatures": {"tensors": {}}},
    "no model": {"model": None},
    "a task of its own": {"task": "evil"},
    "a class of another package": {"preprocess": {"class": "os.system", "config": {}}},
    "a preprocess without a size": {"preprocess": {"class": "Preprocess", "config": {}}},
    "another form": {"form": "onnx"},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_true_is_refused(case, copy):
    path = copy / "manifest.json"
    change = MANIFESTS[case]
    value = json.loads(path.read_text()) | change if isinstance(change, dict) else change
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"damaged|cannot rebuild|its manifest says|can be read here"):
        verify(copy)


def write_file(tensors):
    with tf.control_dependencies([tf.io.write_file("evil.txt", "x")]):
        return {"logits": tf.identity(tensors)}


def python_function(tensors):
    return {"logits": tf.ensure_shape(tf.numpy_function(lambda x: x, [tensors], tf.float32), [None, 3])}


def print_to_file(tensors):
    with tf.control_dependencies([tf.print("x", output_stream="file://evil.txt")]):
        return {"logits": tf.identity(tensors)}


def cached_in_file(tensors):
    return {"logits": tf.data.Dataset.from_tensors(tensors).cache("evil").get_single_element()}


def read_table(tensors):
    table = tf.data.experimental.CsvDataset("evil.csv", [tf.float32])
    return {"logits": tensors + table.batch(1).get_single_element()[0]}


EVIL = {write_file: "WriteFile", python_function: "PyFunc", print_to_file: "PrintV2", cached_in_file: "CacheDataset",
        read_table: "CSVDataset"}  # fmt: skip


@pytest.mark.parametrize(("function", "operation"), EVIL.items())
def test_a_graph_that_reaches_out_is_refused_before_it_is_loaded(function, operation, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = tf.TensorSpec([None, 3], tf.float32, name="tensors")
    evil = tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
    tf.saved_model.save(tf.Module(), str(tmp_path / "evil"), {"tensors": evil})
    shutil.copy(tmp_path / "evil" / "saved_model.pb", copy / "saved_model.pb")
    assert any(operation in name for name in _operations.strange_operations(copy))
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("the graph was loaded"))
    with pytest.raises(InputError, match=rf"its graph holds .*{operation}"):
        predict(copy, [__file__])
    assert not (tmp_path / "evil.txt").exists()


def test_the_checking_process_stops_before_such_a_graph(copy, tmp_path):
    spec = tf.TensorSpec([None, 3], tf.float32, name="tensors")
    evil = tf.function(write_file, input_signature=[spec], autograph=False).get_concrete_function()
    tf.saved_model.save(tf.Module(), str(tmp_path / "evil"), {"tensors": evil})
    shutil.copy(tmp_path / "evil" / "saved_model.pb", copy / "saved_model.pb")
    report = verify(copy)
    assert [check.name for check in report.checks] == ["no operation reaches out of the graph"]
    assert not report.ok


def test_a_signature_may_not_save_what_only_a_checkpoint_may(tmp_path):
    module = tf.Module()
    module.weight = tf.Variable([1.0])
    spec = tf.TensorSpec([None], tf.float32, name="x")
    call = tf.function(lambda x: {"y": x * module.weight}, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(module, str(tmp_path), {"serving_default": call})
    assert _operations.strange_operations(tmp_path) == []
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    answer = graph.signature_def["serving_default"].outputs["y"].name.split(":")[0]
    (node,) = (node for node in graph.graph_def.node if node.name == answer)
    node.input.append(f"^{graph.saver_def.save_tensor_name.split(':')[0]}")
    (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert any("traced_save" in name for name in _operations.strange_operations(tmp_path))


def test_an_export_of_dlkit_computes_only(exported):
    assert _operations.strange_operations(exported) == []
