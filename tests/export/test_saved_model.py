"""The export as a whole: what is written, what is refused, what a server sees."""

import contextlib
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import Preprocess, Standardize, from_arrays
from dlkit.export import VerificationError, _folders, _options, _saved_model, saved_model, verify

LABELS = ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")


def test_an_export_has_the_layout_of_a_server_and_its_papers(exported):
    assert exported.name == "1"
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001",
        "assets/labels.txt", "manifest.json", "verification.json", "README.md",
        "assets.extra/tf_serving_warmup_requests", "assets.extra/verification.npz",
    }  # fmt: skip
    assert (exported / "assets/labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    assert [entry.name for entry in exported.parent.iterdir() if not entry.name.startswith(".")] == ["1"]


def test_the_manifest_tells_weights_preprocessing_versions_and_what_the_caller_added(exported, preprocess):
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["name"] == "animals"
    assert manifest["labels"] == list(LABELS)
    assert manifest["preprocess"]["config"] == preprocess.get_config()
    assert manifest["about"] == {"metrics": {"val_accuracy": 0.5}}
    assert manifest["rewrites"]["folded_batch_norms"] == 2
    assert manifest["model"]["parameters"] == 3 * 9 * 6 + 6 + 6 * 9 * 8 + 8 + 8 * 5 + 5
    assert set(manifest["versions"]) == {"dlkit", "tensorflow", "keras", "numpy", "python"}
    assert len(manifest["model"]["sha256"]) == 64


def test_the_signatures_have_fixed_names_types_and_shapes(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    inputs = {
        name: {
            key: (spec.dtype.name, spec.shape.as_list()) for key, spec in function.structured_input_signature[1].items()
        }
        for name, function in signatures.items()
    }
    files = {"image_bytes": ("string", [None])}
    assert inputs == {
        "serving_default": files,
        "tolerant": files,
        "features": files,
        "images": {"images": ("uint8", [None, None, None, 3])},
        "tensors": {"tensors": ("float32", [None, 12, 12, 3])},
        "tf_example": {"examples": ("string", [None])},
    }
    outputs = {name: set(function.structured_outputs) for name, function in signatures.items()}
    answers = {"probabilities", "logits", "classes", "scores"}
    assert outputs.pop("features") == {"features"}
    assert outputs.pop("tolerant") == answers | {"error"}
    assert all(names == answers for names in outputs.values())


def test_a_label_cannot_become_markup_in_the_model_card(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "<b>" not in card
    assert "&lt;b&gt;bird" in card
    assert "fish\\|star" in card
    assert "checks passed" in card


def test_the_answer_for_a_file_is_that_of_the_model_behind_the_preprocess(exported, tiny, preprocess):
    content = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8))
    logits = tiny()(preprocess.from_bytes(content[None]), training=False).numpy()[0]
    found = tf.saved_model.load(str(exported)).signatures["serving_default"](image_bytes=content[None])
    np.testing.assert_allclose(found["logits"][0], logits, atol=1e-5)
    assert found["classes"][0, 0].numpy().decode() == LABELS[int(logits.argmax())]


def test_a_second_export_takes_the_next_version_leaves_the_first_alone_and_clears_what_a_killed_one_left(
    export, exported, tiny, preprocess, tmp_path
):
    directory = tmp_path / "pets"
    first = shutil.copytree(exported, directory / "3")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    leftover = directory / ".4.killed.tmp"
    (leftover / "variables").mkdir(parents=True)
    second = export(tiny(), preprocess, LABELS, directory, optimize=None)
    assert (first.name, second.name) == ("3", "4")
    with pytest.raises(InputError, match=r"4 exists already and is left alone; use version=None .*\(5\)"):
        saved_model(tiny(), preprocess, LABELS, directory, version=4)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert {entry.name for entry in directory.iterdir()} == {"3", "4", ".lock"}


@pytest.mark.parametrize("kind", ["dense", "layer", "activation", "nested"])
def test_a_softmax_is_found_in_every_form_and_the_logits_come_before_it(kind, tiny, preprocess):
    from dlkit.export import _net

    logits = tiny()
    last = {
        "dense": lambda: tiny(activation="softmax"),
        "layer": lambda: keras.Model(logits.inputs[0], keras.layers.Softmax()(logits.output)),
        "activation": lambda: keras.Model(logits.inputs[0], keras.layers.Activation("softmax")(logits.output)),
        "nested": lambda: keras.Sequential([keras.Input((12, 12, 3)), tiny(activation="softmax")]),
    }
    model = last[kind]()
    x = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype("float32")
    net = _net.served(model, "classification")
    found = net.model(x, training=False)
    main = found[0] if isinstance(found, list) else found
    if kind == "nested":
        assert not _net.ends_in_softmax(model)
        assert _net.sums_to_one(np.asarray(main))
        return
    assert _net.ends_in_softmax(model)
    assert net.names == ("logits", "features")
    np.testing.assert_allclose(main, logits(x, training=False), atol=1e-6)


@pytest.mark.slow
def test_a_softmax_that_the_graph_hides_still_gives_probabilities_and_their_logarithm(export, tiny, preprocess):
    model = keras.Sequential([keras.Input((12, 12, 3)), tiny(activation="softmax")])
    folder = export(model, preprocess, LABELS)
    assert json.loads((folder / "manifest.json").read_text())["model"]["gives"] == "probabilities"


def test_a_model_trained_in_half_precision_is_served_in_float32(export, tiny, preprocess):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = tiny()
    keras.config.set_dtype_policy("float32")
    folder = export(model, preprocess, LABELS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["signatures"]["tensors"]["outputs"]["logits"][0] == "float32"
    pixels = np.random.default_rng(0).integers(0, 255, (2, 12, 12, 3), np.uint8)
    found = tf.saved_model.load(str(folder)).signatures["images"](images=pixels)["logits"]
    reference = tiny()
    reference.set_weights(model.get_weights())
    np.testing.assert_allclose(found, reference(preprocess.from_images(pixels), training=False), atol=1e-5)


@pytest.mark.slow
def test_the_temperature_divides_the_logits_of_the_probabilities_only(export, tiny, preprocess):
    folder = export(tiny(), preprocess, LABELS, temperature=2.5)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 12, 12, 3), np.uint8)
    found = tf.saved_model.load(str(folder)).signatures["images"](images=pixels)
    np.testing.assert_allclose(found["probabilities"], tf.nn.softmax(found["logits"] / 2.5), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "width", "output"),
    [("regression", 3, "predictions"), ("box", 4, "boxes")],
)
def test_other_tasks_answer_under_their_own_name(task, width, output, export, tiny, preprocess):
    folder = export(tiny(width), preprocess, None, task=task)
    signatures = tf.saved_model.load(str(folder)).signatures
    assert set(signatures["images"].structured_outputs) == {output}
    assert set(signatures["tolerant"].structured_outputs) == {output, "error"}


def test_a_network_without_preprocessing_takes_tensors_of_any_rank(export, randomised):
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(2)])
    signatures = tf.saved_model.load(str(export(randomised(model), None, None))).signatures
    assert set(signatures) == {"serving_default", "tensors", "features"}
    assert signatures["serving_default"](tensors=tf.zeros([3, 7]))["predictions"].shape == (3, 2)


def test_a_network_on_table_rows_standardises_them_in_the_graph(export, randomised):
    rows = np.random.default_rng(0).normal(50, [1, 20], (30, 2)).astype("float32")
    source = from_arrays(rows, rows.sum(-1, keepdims=True) / 100)
    standardize = Standardize.of(source)
    model = randomised(keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]))
    folder = export(model, standardize, None, verify_on=source)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](inputs=rows[:3])["predictions"]
    np.testing.assert_allclose(served, model(standardize.from_rows(rows[:3]), training=False), atol=1e-5)
    assert verify(folder, data=source).ok


def test_without_optimisation_files_of_a_labelled_source_answer_as_predict_does_bit_for_bit(export, tiny, preprocess):
    rng = np.random.default_rng(0)
    pictures, ids = rng.integers(0, 255, (40, 15, 10, 3), np.uint8), rng.integers(0, 5, 40)
    source = from_arrays(pictures, ids, classes=LABELS)
    folder = export(tiny(activation="softmax"), preprocess, LABELS, verify_on=source, optimize=None)
    report = json.loads((folder / "verification.json").read_text())
    rows = {check["name"]: check for check in report["checks"]}
    for signature in ("serving_default", "tensors", "tf_example"):
        assert rows[f"{signature} probabilities"]["limit"] == 0.0
        assert rows[f"{signature} probabilities"]["difference"] == 0.0
    assert rows["preprocessed pixels"]["difference"] == 0.0
    model_says = tiny()(preprocess.from_images(tf.constant(pictures)), training=False).numpy().argmax(-1)
    assert report["accuracy"] == pytest.approx(np.mean(model_says == ids))
    with np.load(folder / "assets.extra/verification.npz") as carried:  # generated pictures only: data stay at home
        assert sum(name.startswith("file_") for name in carried) == report["samples"] - 40


def test_an_export_that_computes_something_else_is_never_published(monkeypatch, tiny, preprocess, export, tmp_path):
    right = _saved_model.trace

    def wrong(model, shape, names, log=False):
        return right(lambda x, training: [value + 0.01 for value in model(x, training=training)], shape, names, log)

    monkeypatch.setattr(_saved_model, "trace", wrong)
    with pytest.raises(VerificationError, match=r"serving_default logits 0\.01") as caught:
        export(tiny(), preprocess, LABELS, tmp_path / "pets", optimize=None)
    assert not caught.value.report.ok
    assert not (tmp_path / "pets").exists()


BAD = {
    "labels_too_few": ({"labels": ["a", "b"]}, "2 labels for a model with 5 outputs"),
    "labels_missing": ({"labels": []}, "expected a list of one class name per output"),
    "labels_a_string": ({"labels": "abcde"}, "expected a list of one class name per output"),
    "labels_without_order": ({"labels": set("abcde")}, "expected a list of one class name per output"),
    "labels_a_number": ({"labels": 5}, "expected a list of one class name per output"),
    "labels_bytes": ({"labels": b"abcde"}, "expected a list of one class name per output"),
    "labels_without_end": ({"labels": ["a" * 1001, *"bcde"]}, "has 1,001 letters; a class name has at most 1000"),
    "labels_twice": ({"labels": ["a", "b", "c", "d", "a"]}, "'a' occurs twice"),
    "labels_two_lines": ({"labels": ["a", "b", "c", "d", "e\nf"]}, "printable text on one line"),
    "labels_of_a_regression": ({"task": "regression"}, "labels are for classification"),
    "task": ({"task": "clasification"}, "did you mean 'classification'"),
    "box": ({"task": "box", "labels": None}, "a box task has 4 outputs"),
    "optimize": ({"optimize": "frezze"}, "did you mean 'freeze'"),
    "precision": ({"precision": "int8"}, "unknown precision 'int8'"),
    "version": ({"version": 0}, "expected a positive integer"),
    "version_text": ({"version": "3"}, "expected a positive integer"),
    "temperature": ({"temperature": 0}, "expected a positive number"),
    "about": ({"about": {"model": object()}}, "JSON cannot"),
    "preprocess_odd": ({"preprocess": "imagenet"}, "expected a dlkit.data.Preprocess, a Standardize, or None"),
    "preprocess": (
        {"preprocess": Preprocess(16)},
        r"the preprocess yields \(16, 16, 3\), the model takes \(12, 12, 3\)",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_in_a_sentence_and_nothing_is_written(wrong, message, tiny, preprocess, tmp_path):
    arguments = {"model": tiny(), "preprocess": preprocess, "labels": LABELS, "directory": tmp_path / "pets"} | wrong
    with pytest.raises(InputError, match=message):
        saved_model(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_or_a_version_is_refused(exported, tiny, preprocess, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file or a link to nothing; give the folder that holds"):
        saved_model(tiny(), preprocess, LABELS, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a file or a link to nothing; give the folder that holds"):
        saved_model(tiny(), preprocess, LABELS, tmp_path / "link")
    with pytest.raises(InputError, match="is an exported version itself"):
        saved_model(tiny(), preprocess, LABELS, exported)


def test_numbers_of_versions_are_those_of_the_server_with_zeros_and_without(tmp_path):
    for name in ("00000123", "7", "\u0663", "notes"):
        (tmp_path / "half" / name).mkdir(parents=True)
        (tmp_path / "half" / name / "saved_model.pb").touch()
    assert _folders.version_folder(tmp_path / "half").name == "00000123"
    assert _folders.next_version(tmp_path / "half") == 124
    with pytest.raises(InputError, match="123 exists already"):
        _folders.check_target(tmp_path / "half", 123)
    with pytest.raises(InputError, match=r"lies among the versions in .*; give that folder, and version=8"):
        _folders.check_target(tmp_path / "half" / "8", None)
    assert _folders.check_target(tmp_path / "2024", None) == tmp_path / "2024"


def test_a_version_that_appears_while_an_export_waits_for_its_turn_is_left_alone(
    tiny, preprocess, tmp_path, monkeypatch
):
    directory = tmp_path / "pets"
    directory.mkdir()

    @contextlib.contextmanager
    def waited(folder, writing=_folders.writing):
        (folder / "3").mkdir()  # what the one before wrote
        with writing(folder) as scratch:
            yield scratch

    monkeypatch.setattr(_folders, "writing", waited)
    with pytest.raises(InputError, match="3 exists already and is left alone"):
        saved_model(tiny(), preprocess, LABELS, directory, version=3)
    assert list((directory / "3").iterdir()) == []


def test_what_is_told_about_a_run_is_json_that_every_program_reads(tmp_path):
    about = {"metrics": {"val_loss": float("nan"), "lr": float("inf"), "epoch": 3}}
    options = _options.checked(["a"], tmp_path, None, "fold", "float32", None, 1.0, about)
    assert options.about == {"metrics": {"val_loss": None, "lr": None, "epoch": 3}}


def test_letters_of_every_language_are_names_of_classes():
    names = ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f467", "\u00a0x")
    assert _options._names(names, "classification") == names
    for wrong in ("a\u2028b", "a\x85b", "a\tb", "\udcff", " "):
        with pytest.raises(InputError, match="printable text on one line"):
            _options._names([wrong], "classification")


def test_models_that_cannot_be_served_are_refused(tiny, preprocess, tmp_path, export):
    x = keras.Input((12, 12, 3))
    two = keras.Model(x, [keras.layers.Flatten()(x), keras.layers.GlobalAveragePooling2D()(x)])
    sigmoid = tiny(activation="sigmoid")
    broken = tiny()
    broken.get_layer("fc").bias.assign(np.full(5, np.nan))
    for model, message in ((two, "2 outputs"), (sigmoid, "is a sigmoid"), (broken, "NaN or infinity")):
        with pytest.raises(InputError, match=message):
            export(model, preprocess, LABELS, tmp_path / "pets")
    assert not (tmp_path / "pets").exists()
