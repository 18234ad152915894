"""Data sets of tensorflow-datasets, without a network."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from data_pictures import encoded, folder

from dlkit._errors import InputError
from dlkit.data import Preprocess, _tfds, eval_pipeline, from_tfds, load, train_pipeline
from dlkit.data import augment as a


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
    with pytest.raises(InputError, match="unknown split of digits 'tset'; did you mean 'test'"):
        from_tfds("digits", "train[:10%]+tset", data_dir=digits[2])
    assert len(from_tfds("digits", "train[:50]+test[:7]", data_dir=digits[2])) == 57


def test_an_unprepared_data_set_fails_within_five_seconds(tmp_path):
    start = time.perf_counter()
    with pytest.raises(InputError, match="is not prepared in"):
        from_tfds("mnist", "train", data_dir=tmp_path)
    assert time.perf_counter() - start < 5


def test_features_that_are_no_numbers_are_refused_by_name(photos):
    with pytest.raises(InputError, match=r"feature 'label' of photos is .*: neither a picture"):
        _tfds._numbers(photos, "label", [b"a", b"b"])
    with pytest.raises(InputError, match="feature 'image' of photos"):
        _tfds._numbers(photos, "image", [[1.0], [1.0, 2.0]])


def test_own_builders_work(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("PIL")
    folder(tmp_path / "train")
    source = from_tfds(tfds.ImageFolder(str(tmp_path)), "train")
    assert source.classes == ("cat", "dog")
    assert len(source) == 8
    assert source.store.encoded


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared data set of 60 pictures of three classes in five record files, and its builder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("PIL")

    class Photos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog", "elk"])}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(60):
                picture = np.full([20 + i % 3, 24, 3], 4 * i, np.uint8)
                yield i, {"image": io.BytesIO(encoded(picture, "PNG")), "label": i % 3}

    builder = Photos(data_dir=tmp_path_factory.mktemp("photos"))
    shards = tfds.download.DownloadConfig(num_shards=5)
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=shards)
    assert len(builder.info.splits["train"].file_instructions) == 5
    return builder


CHAIN = (a.RandomResizedCrop(), a.Flip(mode="alternating"), a.Color(0.2), a.MixUp())


def streamed(photos, split="train"):
    with pytest.warns(UserWarning, match="shuffled in a buffer of 2048"):
        return from_tfds(photos, split, budget=0.0)


def shown(source, batch=20, start=0, steps=6, augment=None, **options):
    stream = train_pipeline(source, Preprocess(16), augment, batch, 7, start, **options).take(steps)
    parts = list(stream.as_numpy_iterator())
    return tuple(np.concatenate([part[i] for part in parts]) for i in range(2))


def test_a_split_beyond_the_budget_is_read_from_its_files_and_says_so(photos):
    source, whole = streamed(photos), from_tfds(photos, "train")
    assert (len(source), source.classes, source.task) == (60, whole.classes, "classification")
    assert source.fingerprint == streamed(photos).fingerprint != streamed(photos, "train[:50%]").fingerprint
    dataset = eval_pipeline(source, Preprocess(16), 25)
    assert dataset.cardinality() == 3
    for one, other in zip(dataset, eval_pipeline(whole, Preprocess(16), 25), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_streamed_split_shows_every_sample_once_per_epoch_in_a_seeded_order(photos):
    source = streamed(photos)
    inputs, targets = shown(source)
    values = np.rint((inputs[:, 0, 0, 0] * 0.229 + 0.485) * 255 / 4).astype(int)
    for epoch in (values[:60], values[60:]):
        assert sorted(epoch) == list(range(60))
    assert (values[:60] != values[60:]).any()
    np.testing.assert_array_equal(targets.argmax(1), values % 3)
    assert np.abs(np.corrcoef(values[:60], np.arange(60))[0, 1]) < 0.6


@pytest.mark.slow
def test_a_streamed_split_keeps_its_bits_at_any_batch_size_parallelism_worker_and_resume_point(photos):
    source = streamed(photos)
    inputs, targets = shown(source, augment=CHAIN)
    for batch, start, steps, calls in ((20, 4, 2, 1), (7, 3, 9, 8), (48, 1, 1, 2)):
        part = shown(source, batch, start, steps, CHAIN, num_parallel_calls=calls)
        first = batch * start
        np.testing.assert_array_equal(part[0], inputs[first : first + len(part[0])])
        np.testing.assert_array_equal(part[1], targets[first : first + len(part[1])])
    for worker in range(2):
        part = shown(source, 20, 0, 6, CHAIN, worker=worker, workers=2)[0].reshape(6, 10, 16, 16, 3)
        np.testing.assert_array_equal(part, inputs.reshape(6, 2, 10, 16, 16, 3)[:, worker])


def test_a_streamed_split_repeats_augmentation_and_finishes_large_pictures(photos):
    source = streamed(photos)
    inputs, targets = shown(source, 12, 0, 2, (a.GaussianNoise((0.2, 0.2)),), repeats=3)
    thrice = targets.argmax(1).reshape(8, 3)
    assert (thrice == thrice[:, :1]).all()
    later = shown(source, 4, 4, 1, (a.GaussianNoise((0.2, 0.2)),), repeats=3)[0]
    np.testing.assert_array_equal(later, inputs[16:20])
    large = next(iter(train_pipeline(source, Preprocess(100), CHAIN, 16, 0)))[0]
    assert large.shape == (16, 100, 100, 3)
    assert np.isfinite(large).all()


def test_what_a_streamed_split_cannot_do_is_refused_with_the_way_out(photos):
    source = streamed(photos)
    for attempt, message in (
        (lambda: source.split(0.9, 0.1), r"train\[:90%\]"),
        (lambda: source.cached(), "raise that"),
        (lambda: source.class_counts, "no classes to count"),
        (lambda: train_pipeline(source, Preprocess(16), None, 4, 0, balance=True), "needs class labels"),
        (lambda: a.preview(source, None, k=3, preprocess=Preprocess(16)), "no access to sample k"),
        (lambda: source.subset([60]), "index 60"),
    ):
        with pytest.raises(InputError, match=message):
            attempt()
    part = source.subset([41, 3])
    whole = from_tfds(photos, "train")
    assert part.labels.tolist() == whole.labels[[41, 3]].tolist()
    assert [part.store.content(i) for i in range(2)] == [whole.store.content(i) for i in (41, 3)]
    assert source.store.content(41) == whole.store.content(41)
    assert source.check(progress=False).ok


def test_a_damaged_record_of_a_streamed_split_is_found(photos, monkeypatch):
    source = streamed(photos)
    parsed = source.store.parsed

    def damaged(record):
        image, label = parsed(record)
        return tf.where(label == 2, tf.strings.substr(image, 0, 30), image), label

    monkeypatch.setattr(source.store, "parsed", damaged)
    report = source.check(progress=False)
    assert len(report.bad) == 20
    with pytest.raises(InputError, match="record"):
        train_pipeline(source, Preprocess(16), None, 4, 0)


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path):
    code = f"from dlkit.data import load; print(load('digits', data_dir={str(tmp_path)!r})[0].fingerprint)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    prints = [process.communicate(timeout=120)[0].split()[-1] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(prints)) == 1
