"""The command line on a folder of real pictures: the whole way, and one clear sentence for every wrong input."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dlkit._commands import divide
from dlkit.cli import COMMANDS, main
from dlkit.data import from_folder, load


def pictures(folder, classes, each):
    """Writes digits as PNG files, one subfolder per class."""
    train, _ = load("digits")
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in np.flatnonzero(train.labels == int(name))[:each]:
            image = train.store.take(tf.constant(train.rows[index : index + 1]))[0]
            content = image.numpy() if train.store.encoded else tf.io.encode_png(image).numpy()
            (folder / name / f"{index}.png").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with pictures of three classes, a run on them and its export."""
    folder = tmp_path_factory.mktemp("cli")
    pictures(folder / "photos", "357", 30)
    said(folder, "train resnet_cifar8 photos --size 16 --set epochs=2 --set augment=none --no-export")
    said(folder, "export runs/photos-resnet_cifar8 --name photos --data photos --calibrate")
    return folder


@pytest.fixture(scope="module")
def searched(work):
    """What a search in `runs/tune` printed."""
    settings = "--size 8 --set epochs=1 --epochs-budget 2 --oracle random"
    return said(work, f"tune resnet_cifar8 photos {settings} --directory runs/tune")


@pytest.fixture(scope="module")
def tuned(work):
    """What a fine-tuning run in `runs/tuned` printed."""
    weights = "--weights runs/photos-resnet_cifar8/model.keras"
    settings = "--size 16 --set epochs=1 --set augment=none --run-dir runs/tuned --no-export"
    return said(work, f"train resnet_cifar8 photos {weights} {settings}")


def said(folder, command):
    """Runs a command in a folder and returns what it printed."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        main(command.split())
    return out.getvalue()


@pytest.fixture
def here(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_train_and_export_leave_a_run_and_a_version(here):
    assert (here / "runs/photos-resnet_cifar8/report.html").is_file()
    assert (here / "saved_models/photos/1/saved_model.pb").is_file()
    assert sorted(json.loads((here / "runs/photos-resnet_cifar8/recipe.json").read_text())["classes"]) == [
        "3",
        "5",
        "7",
    ]


def test_an_export_is_checked_and_calibrated_on_the_part_that_training_did_not_see(here):
    held_out = divide(from_folder(here / "photos"), None, 0)[1]
    manifest = json.loads((here / "saved_models/photos/1/manifest.json").read_text())
    assert manifest["calibration"]["samples"] == len(held_out) < 90


def test_predict_names_a_class_for_every_file(here, capsys):
    chosen = sorted(str(path.relative_to(here)) for path in (here / "photos").rglob("*.png"))[:4]
    main(["predict", "saved_models/photos", *chosen])
    out = capsys.readouterr().out
    assert all(name in out for name in chosen)


def test_evaluate_measures_the_run(here, capsys):
    main(["evaluate", "runs/photos-resnet_cifar8", "photos"])
    assert "accuracy" in capsys.readouterr().out


def test_tune_searches_and_names_the_best_run(searched):
    assert "2 epochs in 2 trials" in searched
    assert "next: dlkit export runs/tune/trials/" in searched


def test_train_chooses_model_size_and_recipe_and_says_why(here, capsys):
    main(["train", "photos", "--set", "epochs=1", "--run-dir", "runs/chosen", "--saved-models", "chosen"])
    out = capsys.readouterr().out
    assert "chosen: input 16x16x1" in out
    assert "chosen: resnet_cifar20" in out
    assert "chosen: recipe small_images" in out
    assert "chosen: batch 8" in out
    assert "next: dlkit predict chosen/photos/1 FILE" in out
    assert json.loads((here / "chosen/photos/1/verification.json").read_text())["ok"]
    assert "Grad-CAM" in (here / "runs/chosen/report.html").read_text()


def test_trained_weights_are_loaded_and_fine_tuned(tuned):
    assert "chosen: recipe finetune" in tuned
    assert "weights loaded" in tuned
    assert "next: dlkit export runs/tuned" in tuned


@pytest.mark.usefixtures("searched", "tuned")
def test_report_draws_a_run_a_search_and_a_comparison(here, capsys):
    main(["report", "runs/photos-resnet_cifar8", "--data", "photos"])
    assert "worst mistakes" in (here / "runs/photos-resnet_cifar8/report.html").read_text()
    main(["report", "runs/photos-resnet_cifar8", "runs/tuned"])
    assert "<h1>2 runs</h1>" in (here / "runs/compare.html").read_text()
    main(["report", "runs/tune"])
    assert capsys.readouterr().out.splitlines()[-1] == "runs/tune/report.html"


def test_doctor_names_versions_devices_and_what_is_missing(capsys, monkeypatch):
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["tensorflow"] == tf.__version__
    assert found["problems"] == []
    assert {"bfloat16", "GPUs", "processors"} <= set(found["machine"])
    monkeypatch.setattr("dlkit._doctor._version", lambda name: None if name in ("scipy", "onnx") else "99")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "problem: scipy>=1.14: pip install 'scipy>=1.14'" in out
    assert 'pip install "dlkit[onnx]"' in out


def test_models_and_describe_answer_in_text_and_json(here, capsys):
    main(["models"])
    assert "resnet_cifar110" in capsys.readouterr().out
    main(["models", "--json"])
    assert "vgg16" in json.loads(capsys.readouterr().out)
    main(["describe", "resnet_cifar20", "--classes", "10", "--json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == 269_722


def test_a_stopped_training_exits_with_130_and_the_same_command_continues(here):
    command = [sys.executable, "-m", "dlkit", "train", "resnet_cifar8", "photos"]
    command += ["--set", "epochs=400", "--run-dir", "runs/stop"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (here / "runs/stop/events").is_dir() and any((here / "runs/stop/events").iterdir()):
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same call continues from there" in error
    assert len(list((here / "runs/stop/checkpoints").iterdir())) == 1


WRONG = {
    "an unknown command": (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    "an unknown model": (["train", "resnet_cifra20", "photos"], "did you mean 'resnet_cifar20'"),
    "an unknown model to describe": (["describe", "resnet51"], "must be one of 18, 34, 50"),
    "an unknown data set": (["train", "resnet_cifar20", "digitz"], "did you mean 'digits'"),
    "a folder that is not there": (["train", "resnet_cifar20", "photo/"], "is no folder"),
    "an empty folder": (["train", "resnet_cifar20", "empty"], "holds no pictures"),
    "a folder with one class": (["train", "resnet_cifar20", "one"], "needs at least two class"),
    "a text file named .jpg": (["train", "resnet_cifar20", "bad"], "note.jpg"),
    "an input below the model's minimum": (["train", "vgg16", "photos", "--size", "16"], "the smallest is 32"),
    "classes that are not the run's": (["evaluate", "runs/photos-resnet_cifar8", "other"], "the run's classes are"),
    "a version that exists": (
        ["export", "runs/photos-resnet_cifar8", "--name", "photos", "--version", "1"], "is left alone"
    ),
    "an unknown recipe": (["train", "resnet_cifar8", "photos", "--recipe", "digit"], "did you mean 'digits'"),
    "an unknown field": (["train", "resnet_cifar8", "photos", "--set", "epoch=3"], "did you mean 'epochs'"),
    "a field of another type": (["train", "resnet_cifar8", "photos", "--set", "epochs=many"], "must be int"),
    "a field out of range": (["train", "resnet_cifar8", "photos", "--set", "momentum=1.5"], "from 0 to below 1"),
    "a setting without a value": (["train", "resnet_cifar8", "photos", "--set", "epochs"], "FIELD=VALUE"),
    "an unknown oracle": (["tune", "resnet_cifar8", "photos", "--oracle", "randon"], "did you mean 'random'"),
    "a run that is none": (["export", "photos"], "is no run directory"),
    "an unfinished run": (["export", "unfinished"], "has not ended"),
    "an export that is none": (["predict", "photos", "photos/3/x.png"], "photos"),
    "a file that is not there": (["predict", "saved_models/photos/1", "nothing.png"], "nothing.png"),
    "a file that is no picture": (["predict", "saved_models/photos/1", "bad/3/note.jpg"], "note.jpg"),
    "an unknown optimization": (["export", "runs/photos-resnet_cifar8", "--optimize", "foldd"], "fold"),
    "an unknown action": (["data", "clean", "photos"], "knows: check"),
    "no run to report": (["report"], "takes a run directory"),
    "a report of no run": (["report", "photos"], "recipe.json is missing"),
    "channels without a side": (["describe", "resnet18", "--channels", "1"], "goes with --input SIDE"),
    "a report on other classes": (["report", "runs/photos-resnet_cifar8", "--data", "other"], "has 2 classes"),
    "a comparison with data": (["report", "a", "b", "--data", "photos"], "goes with one run"),
    "a run twice": (["report", "runs/photos-resnet_cifar8", "runs/photos-resnet_cifar8"], "the same run twice"),
    "weights that are not there": (["train", "resnet_cifar8", "photos", "--weights", "none.h5"], "none.h5"),
    "weights of another network": (
        ["train", "resnet_cifar20", "photos", "--size", "16", "--weights", "runs/photos-resnet_cifar8/model.keras"],
        "weights",
    ),
    "an unknown experiment": (["lectures", "run", "decent"], "did you mean 'descent'"),
    "an unknown action of the lectures": (["lectures", "walk"], "Known: gallery, list, run"),
    "no results for the gallery": (["lectures", "gallery", "photos"], "no results in photos"),
    "the folder of another run": (
        ["train", "resnet_cifar8", "photos", "--size", "16", "--set", "epochs=3"], "recipe.epochs: 2 there, 3 now"
    ),
}  # fmt: skip


@pytest.fixture
def wrong(here):
    if not (here / "empty").exists():
        (here / "empty").mkdir()
        pictures(here / "one", "3", 3)
        pictures(here / "other", "12", 3)
        (pictures(here / "bad", "35", 3) / "3" / "note.jpg").write_text("hello\n")
        (here / "unfinished").mkdir()
        (here / "unfinished" / "recipe.json").write_text("{}")
    return here


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_exit_code_2_and_nothing_left_behind(case, wrong, capsys):
    arguments, message = WRONG[case]
    before = files(wrong)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert "Traceback" not in error
    assert files(wrong) == before


def test_a_check_of_a_folder_lists_the_file_that_cannot_be_read(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["data", "check", "bad"])
    assert exit_.value.code == 2
    assert "note.jpg" in capsys.readouterr().out


def test_debug_shows_the_traceback(here):
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "resnet_cifar8", "photos", "--recipe", "x", "--debug"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"Example: dlkit {command}" in capsys.readouterr().out
