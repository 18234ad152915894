"""Data sets of tensorflow-datasets, without a network."""

import subprocess
import sys
import time

import numpy as np
import pytest
from data_pictures import folder

from dlkit._errors import InputError
from dlkit.data import from_tfds, load


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits prepared in a folder of their own, and that folder."""
    path = tmp_path_factory.mktemp("tfds")
    return (*load("digits", data_dir=path), path)


def test_digits_are_prepared_offline_with_fixed_splits(digits):
    train, test, _ = digits
    assert (len(train), len(test)) == (1433, 364)
    assert train.classes == tuple("0123456789")
    assert set(train.class_counts.values()) <= set(range(138, 148))
    assert not set(train.identities) & set(test.identities)
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    expected = {
        np.round(image * (255 / 16)).astype(np.uint8).tobytes() + bytes([target])
        for image, target in zip(bunch.images, bunch.target, strict=True)
    }
    images, labels = train.store.values, train.labels
    assert images.shape[1:] == (8, 8, 1)
    assert all(image.tobytes() + bytes([label]) in expected for image, label in zip(images, labels, strict=True))


def test_the_environment_names_the_folder_and_a_second_load_reads_it(digits, monkeypatch):
    train, _, path = digits
    monkeypatch.setenv("TFDS_DATA_DIR", str(path))
    start = time.perf_counter()
    again = from_tfds("digits", "train")
    assert time.perf_counter() - start < 3
    assert again.fingerprint == train.fingerprint


def test_slices_and_prepared_folders_work(digits):
    _, test, path = digits
    assert len(from_tfds("digits", "test[:100]", data_dir=path)) == 100
    assert from_tfds(path / "digits" / "1.0.0", "test").fingerprint == test.fingerprint


def test_unknown_names_and_splits_are_refused_with_the_nearest(digits):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        from_tfds("cifar1O", "train")
    with pytest.raises(InputError, match="did you mean 'test'"):
        from_tfds("digits", "tests", data_dir=digits[2])


def test_an_unprepared_data_set_fails_within_five_seconds(tmp_path):
    start = time.perf_counter()
    with pytest.raises(InputError, match="is not prepared in"):
        from_tfds("mnist", "train", data_dir=tmp_path)
    assert time.perf_counter() - start < 5


def test_own_builders_work(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("PIL")
    folder(tmp_path / "train")
    source = from_tfds(tfds.ImageFolder(str(tmp_path)), "train")
    assert source.classes == ("cat", "dog")
    assert len(source) == 8
    assert source.store.encoded


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path):
    code = f"from dlkit.data import load; print(load('digits', data_dir={str(tmp_path)!r})[0].fingerprint)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    prints = [process.communicate(timeout=120)[0].split()[-1] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(prints)) == 1
