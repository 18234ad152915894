"""`verify` finds what changed in an export, and says what it cannot check."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import from_arrays
from dlkit.export import Check, Report, VerificationError, verify

LABELS = ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export that a test may damage."""
    return shutil.copytree(exported, tmp_path / "animals" / "1")


def failed(report):
    return [check.name for check in report.failures]


def test_a_sound_export_verifies_later_with_the_samples_it_carries_and_with_data(copy):
    rng = np.random.default_rng(0)
    source = from_arrays(rng.integers(0, 255, (9, 14, 14, 3), np.uint8), rng.integers(0, 5, 9), classes=LABELS)
    report = verify(copy.parent, data=source)
    assert report.ok, str(report)
    assert report.path == str(copy)
    assert 0 < report.max_difference < 1e-5
    assert report.accuracy is not None
    names = [check.name for check in report.checks]
    for wanted in (
        "loads with TensorFlow alone", "no random operation in the graph", "each weight is stored once (bytes)",
        "preprocessed pixels", "top-1 agreement with the evaluation", "an empty batch gives empty outputs",
        "no file gives empty outputs", "half a file: the request fails", "empty bytes: the request fails",
        "tolerant answers zeros and a reason for an undecodable file only", "features",
    ):  # fmt: skip
        assert wanted in names


def test_changed_weights_and_changed_labels_are_found(copy):
    path = copy / "variables/variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[:64] = np.ones(16, np.float32).tobytes()
    path.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["labels"] = manifest["labels"][::-1]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    report = verify(copy)
    assert not report.ok
    text = " ".join(failed(report))
    assert "logits" in text or "runs to the end" in text


def test_a_folder_that_is_no_export_is_refused(tmp_path, copy):
    with pytest.raises(InputError, match=r"does not exist; expected an export such as"):
        verify(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds neither an exported model nor numbered versions"):
        verify(tmp_path)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json is damaged"):
        verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        verify(copy)


def test_data_with_other_classes_is_refused(exported):
    pictures = np.zeros((5, 4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="only on one side: cow"):
        verify(exported, data=from_arrays(pictures, np.arange(5), classes=("cow", *LABELS[1:])))
    with pytest.raises(InputError, match="in another order"):
        verify(exported, data=from_arrays(pictures, np.arange(5), classes=LABELS[::-1]))


def test_a_report_reads_back_and_shows_its_failures():
    rows = (Check("a", True, 1e-7, 1e-5), Check("b", False, 0.5, 1e-5, "[red]too far[/red]"))
    report = Report("saved_models/x/1", rows, 1.0, {"tensorflow": "2"}, 3)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert (report.ok, report.max_difference, failed(report)) == (False, 0.5, ["b"])
    assert "FAILED b 0.5 (allowed 1e-05)  [red]too far[/red]" in str(report)
    assert "failed 1 of 2 checks" in str(VerificationError(report))
    with pytest.raises(InputError, match="not a verification report"):
        Report.from_dict({})


def test_a_report_without_checks_is_not_ok():
    assert not Report("x", ()).ok


def test_a_report_is_drawn_as_a_table_in_which_text_is_never_markup():
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(Report("[bold]x[/bold]", (Check("a", True, 1e-7, 1e-5, "[red]r[/red]"),)))
    text = console.export_text()
    assert "[red]r[/red]" in text
    assert "[bold]x[/bold]: verified" in text


def test_the_checking_script_refuses_keras_and_dlkit():
    import subprocess
    import sys

    from dlkit.export._process import _SCRIPT

    code = f"import runpy; runpy.run_path({str(_SCRIPT)!r})\ntry:\n import keras\nexcept ImportError as e:\n print(e)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "keras is hidden: an export has to run without it" in done.stdout


def test_the_checking_process_answers_in_a_folder_of_any_name(checker, tmp_path):
    folder = tmp_path / "две\nстроки"
    folder.mkdir()
    request = {"form": "saved_model", "task": "regression", "batch": 1, "export": str(folder / "none"), "samples": 0}
    assert failed(checker.run(folder, request, {})) == ["runs to the end"]  # there is no export


def test_random_operations_and_weights_stored_twice_would_be_found(checker, exported, tmp_path):
    module = tf.Module()
    module.a, module.b = tf.Variable(tf.ones([600, 1000])), tf.Variable(tf.ones([600, 1000]))
    module.preprocess = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None], tf.string)])

    def call(tensors):
        logits = tensors @ module.a[:2, :5] + module.b[0, :5] + tf.random.stateless_uniform([5], [1, 2])
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    function = tf.function(call, input_signature=[tf.TensorSpec([None, 2], tf.float32, name="tensors")])
    tf.saved_model.save(module, str(tmp_path / "1"), {"tensors": function})
    request = {
        "form": "saved_model", "lossy": False, "expects_probabilities": False,
        "task": "classification", "labels": list(LABELS), "top": 5, "temperature": 1.0,
        "signatures": {}, "frozen": False, "parameter_bytes": 2_400_000, "graph_bytes": 100_000, "limits": {},
        "batch": 1, "few": 1, "files": 0, "samples": 1, "export": str(tmp_path / "1"),
    }  # fmt: skip
    report = checker.run(tmp_path, request, {"tensors": np.zeros((1, 2), np.float32), "expected": np.zeros((1, 5))})
    assert "no random operation in the graph" in failed(report)
    assert "each weight is stored once (bytes)" in failed(report)
    assert "names, types and shapes of the signatures" in failed(report)
    assert "runs to the end" in failed(report)


def test_an_export_keeps_its_answers_under_the_variables_that_make_servers_faster(exported, monkeypatch):
    for name in ("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "TF_NUM_INTEROP_THREADS", "TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD"):
        monkeypatch.setenv(name, "1")
    report = verify(exported)
    assert report.ok, str(report)
