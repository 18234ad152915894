"""The stream is a function of (seed, k): the determinism matrix."""

import subprocess
import sys
import time

import numpy as np
import pytest
from data_pictures import encoded, photo

from dlkit._errors import InputError
from dlkit.data import Preprocess, Standardize, from_arrays, from_folder, train_pipeline
from dlkit.data import augment as a
from dlkit.data._stream import Stream

pytest.importorskip("PIL")
COUNT = 40
CHAIN = (a.Flip(mode="alternating"), a.Affine(10, 0.1, (0.9, 1.1)), a.Color(0.2, 0.2, 0.2), a.GaussianNoise(0.05),
         a.Erase(0.1), a.MixUp(0.4), a.CutMix(chance=0.5))  # fmt: skip
CROPS = (a.RandomResizedCrop(), a.Flip(), a.CutMix())
SEED = 5


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return from_arrays(rng.integers(0, 256, (COUNT, 10, 10, 3), dtype=np.uint8), np.arange(COUNT) % 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for label in "ab":
        (root / label).mkdir()
        for i in range(8):
            (root / label / f"{i}.jpg").write_bytes(encoded(photo(30 + i, 40, seed=i), "JPEG"))
    return from_folder(root)


def samples(source, preprocess, augment, batch, start, stop, **options):
    """Samples start .. stop-1 of the stream as arrays (inputs, targets), read in batches."""
    first, last = start // batch, -(-stop // batch)
    stream = train_pipeline(source, preprocess, augment, batch, SEED, first, **options).take(last - first)
    parts = list(stream.as_numpy_iterator())
    return tuple(np.concatenate([part[i] for part in parts])[start - first * batch :][: stop - start] for i in range(2))


@pytest.fixture(scope="module")
def expected(arrays, files):
    return {
        "arrays": (arrays, Preprocess(10), CHAIN, samples(arrays, Preprocess(10), CHAIN, 16, 0, 96)),
        "files": (files, Preprocess(12), CROPS, samples(files, Preprocess(12), CROPS, 16, 0, 48)),
    }


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize(("batch", "start", "calls"), [(16, 32, 1), (16, 16, 8), (1, 30, 2), (7, 21, 8), (48, 0, 2)])
def test_the_samples_are_the_same_at_any_batch_size_parallelism_and_resume_point(expected, kind, batch, start, calls):
    source, preprocess, augment, whole = expected[kind]
    stop = min(len(whole[0]), start + max(batch, 4))
    part = samples(source, preprocess, augment, batch, start, stop, num_parallel_calls=calls)
    for got, want in zip(part, whole, strict=True):
        np.testing.assert_array_equal(got, want[start:stop])


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize(("batch", "workers"), [(32, 2), (12, 3)])
def test_workers_share_the_global_batch_in_contiguous_blocks(expected, kind, batch, workers):
    source, preprocess, augment, whole = expected[kind]
    steps, rows = len(whole[0]) // batch, batch // workers
    for worker in range(workers):
        stream = train_pipeline(source, preprocess, augment, batch, SEED, worker=worker, workers=workers).take(steps)
        for step, (inputs, targets) in enumerate(stream.as_numpy_iterator()):
            start = step * batch + worker * rows
            np.testing.assert_array_equal(inputs, whole[0][start : start + rows])
            np.testing.assert_array_equal(targets, whole[1][start : start + rows])


def test_large_pictures_are_finished_one_by_one_with_the_same_result(files):
    preprocess, chain = Preprocess(100), (a.RandomResizedCrop(), a.Affine(10), a.Color(0.2), a.MixUp())
    whole = samples(files, preprocess, chain, 16, 0, 32)
    for batch, start, calls in ((16, 16, 1), (5, 10, 8)):
        part = samples(files, preprocess, chain, batch, start, start + 5, num_parallel_calls=calls)
        np.testing.assert_array_equal(part[0], whole[0][start : start + 5])
    for worker in range(2):
        stream = train_pipeline(files, preprocess, chain, 32, SEED, worker=worker, workers=2).take(1)
        np.testing.assert_array_equal(next(iter(stream))[0], whole[0][16 * worker :][:16])
    shown = a.preview(files, chain, k=17, seed=SEED, preprocess=preprocess)
    np.testing.assert_array_equal(shown.inputs, whole[0][17])
    np.testing.assert_array_equal(shown.targets, whole[1][17])


def test_training_crops_of_photographs_resemble_antialiased_ones(tmp_path):
    """Windows of 0.7 to 7 times the output: read directly, reduced first, or decoded at a smaller size."""
    image_of = pytest.importorskip("PIL.Image")
    side, crop = 100, a.RandomResizedCrop((0.02, 1.0))
    pictures = {"a": photo(620, 700, seed=1), "b": photo(300, 260, seed=2)}
    for name, picture in pictures.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(encoded(picture, "JPEG", quality=95))
    source, preprocess = from_folder(tmp_path), Preprocess(side, mean=0.0, std=1 / 255)
    stream = Stream(source, preprocess, (crop,), SEED)
    inputs, targets = samples(source, preprocess, (crop,), 16, 0, 48)
    u, index = stream.draws(0, 48), stream.place(np.arange(48))[0]
    errors, plain = [], []
    for result, target, i, row in zip(inputs, targets, index, u, strict=True):
        picture = pictures["ab"[int(target.argmax())]]
        top, left, tall, wide = np.rint(stream.stored(i, row)[1].numpy() * np.tile(picture.shape[:2], 2)).astype(int)
        box, image = (left, top, left + wide, top + tall), image_of.fromarray(picture)
        wanted = np.asarray(image.resize((side, side), image_of.Resampling.BILINEAR, box), float)
        unfiltered = image.transform((side, side), image_of.Transform.EXTENT, box, image_of.Resampling.BILINEAR)
        errors.append(np.abs(result - wanted).mean())
        plain.append(np.abs(np.asarray(unfiltered, float) - wanted).mean())
    assert np.mean(errors) < 1.6  # grey levels; 1.33 seen
    assert np.mean(errors) < 0.6 * np.mean(plain)
    assert max(errors) < 3


def test_preview_shows_the_very_pixels_of_the_stream(expected):
    for source, preprocess, augment, whole in expected.values():
        for k in (3, 17):
            shown = a.preview(source, augment, k=k, seed=SEED, preprocess=preprocess)
            np.testing.assert_array_equal(shown.inputs, whole[0][k])
            np.testing.assert_array_equal(shown.targets, whole[1][k])
    source, preprocess, augment, whole = expected["arrays"]
    shown = a.preview(source, augment, index=7, epoch=1, seed=SEED, preprocess=preprocess)
    assert COUNT <= shown.k < 2 * COUNT
    np.testing.assert_array_equal(shown.inputs, whole[0][shown.k])
    with pytest.raises(InputError, match="either index"):
        a.preview(source, augment)
    for arguments, message in (
        ({"index": 40}, "index=40"), ({"k": -1}, "k=-1"), ({"index": 0, "epoch": -1}, "epoch=-1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            a.preview(source, augment, **arguments)
    with pytest.raises(InputError, match="is a table"):
        a.preview(from_arrays(np.ones([4, 3]), np.arange(4.0)), None, index=0)


def test_every_epoch_shows_every_sample_once_in_another_order(arrays):
    stream = train_pipeline(from_arrays(arrays.store.values, np.arange(COUNT)), Preprocess(10), None, COUNT, 0).take(3)
    orders = [targets.argmax(1) for _, targets in stream.as_numpy_iterator()]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_other_seeds_give_other_streams(arrays):
    first = [next(iter(train_pipeline(arrays, Preprocess(10), None, 16, seed)))[1].numpy() for seed in (0, 1)]
    assert (first[0] != first[1]).any()


def test_balancing_shows_every_class_equally_often():
    labels = np.array([0] * 30 + [2] * 3 + [1] * 7)
    source = from_arrays(np.zeros([40, 4, 4, 1], np.uint8), labels)
    preprocess = Preprocess(4, channels=1)
    stream = train_pipeline(source, preprocess, None, 9, 0, balance=True).take(10)
    counts = [targets.sum(0).tolist() for _, targets in stream.as_numpy_iterator()]
    assert counts == [[3, 3, 3]] * 10
    with pytest.raises(InputError, match="balance=True needs class labels"):
        train_pipeline(
            from_arrays(np.zeros([4, 2]), np.zeros(4)), Standardize((0, 0), (1, 1)), None, 2, 0, balance=True
        )


def test_a_balanced_class_goes_through_its_own_shuffled_order():
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones([1, 2, 2, 1], np.uint8)
    source = from_arrays(images, np.array([0] * 8 + [1] * 4))
    stream = train_pipeline(source, Preprocess(2, channels=1, mean=0.0, std=1 / 255), None, 16, 0, balance=True).take(1)
    shown = next(iter(stream))[0].numpy()[:, 0, 0, 0].round().astype(int)
    assert sorted(shown[shown < 8]) == list(range(8))
    assert sorted(shown[shown >= 8]) == sorted([*range(8, 12)] * 2)


def test_repeated_augmentation_shows_a_picture_several_times_with_draws_of_its_own(arrays):
    chain = (a.GaussianNoise((0.2, 0.2)),)
    inputs, targets = next(iter(train_pipeline(arrays, Preprocess(10), chain, 12, 0, repeats=3)))
    targets = targets.numpy().argmax(1).reshape(4, 3)
    assert (targets == targets[:, :1]).all()
    assert (inputs[0] != inputs[1]).numpy().any()


def test_without_augmentation_training_equals_evaluation(files):
    from dlkit.data import eval_pipeline

    preprocess = Preprocess(12)
    inputs, _ = samples(files, preprocess, (), 16, 0, 16)
    every = {x.tobytes() for batch, _ in eval_pipeline(files, preprocess, 5).as_numpy_iterator() for x in batch}
    assert {x.tobytes() for x in inputs} == every
    nothing = (a.Affine(), a.Color(), a.GaussianNoise(0.0))
    np.testing.assert_array_equal(samples(files, preprocess, nothing, 16, 0, 16)[0], inputs)


def test_tables_stream_too():
    table = np.random.default_rng(0).normal(3, 2, (20, 5)).astype(np.float32)
    source = from_arrays(table, table.sum(1))
    preprocess = Standardize.of(source)
    inputs, targets = next(iter(train_pipeline(source, preprocess, None, 20, 0)))
    np.testing.assert_allclose(inputs.numpy().mean(0), 0, atol=1e-5)
    raw = inputs.numpy() * preprocess.std + preprocess.mean
    np.testing.assert_allclose(targets.numpy()[:, 0], raw.sum(1), rtol=1e-4)
    with pytest.raises(InputError, match="table"):
        train_pipeline(source, preprocess, (a.Flip(),), 4, 0)


def test_boxes_follow_the_pictures():
    """A white box on black: after any geometry its hull is where the white pixels are."""
    side, count = 64, 12
    rng = np.random.default_rng(0)
    images, boxes = np.zeros([count, side, side, 1], np.uint8), []
    for i in range(count):
        x, y = rng.integers(16, 30, 2)
        w, h = rng.integers(10, 16, 2)
        images[i, y : y + h, x : x + w] = 255
        boxes.append([x / side, y / side, w / side, h / side])
    source = from_arrays(images, None, boxes=boxes)
    preprocess = Preprocess(side, channels=1, mean=0.0, std=1.0)
    chains = [
        (a.Affine(20, 0.1, (0.8, 1.2), 10, fill=0.0), a.Flip(0.5, 0.5)),
        (a.RandomCrop(6),),
        (a.RandomResizedCrop((0.7, 1.0)),),
    ]
    for chain in chains:
        pictures, targets = next(iter(train_pipeline(source, preprocess, chain, count, 1)))
        for picture, (x, y, w, h) in zip(pictures.numpy()[..., 0], targets.numpy(), strict=True):
            rows, columns = np.flatnonzero(picture.max(1) > 0.02), np.flatnonzero(picture.max(0) > 0.02)
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(seen, np.array([x, y, x + w, y + h]) * side, atol=2.1)
    with pytest.raises(InputError, match="boxes cannot express"):
        train_pipeline(source, preprocess, (a.MixUp(),), 4, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": 4, "start_step": -1}, "start_step=-1"),
        ({"batch": 5, "workers": 2}, "divisible"),
        ({"batch": 4, "worker": 2, "workers": 2}, "worker=2"),
        ({"batch": 4, "repeats": 0}, "repeats=0"),
        ({"batch": 4, "augment": ("flip",)}, "no operation"),
        ({"batch": 4, "augment": (a.MixUp(), a.Flip())}, "last operations"),
    ],
)
def test_wrong_arguments_are_refused(arrays, arguments, message):
    arguments = {"augment": None, **arguments}
    with pytest.raises(InputError, match=message):
        train_pipeline(arrays, Preprocess(10), arguments.pop("augment"), seed=0, **arguments)


def test_starting_late_costs_no_more_than_starting_early(arrays):
    seconds = []
    for start in (0, 10**9):
        stream = iter(train_pipeline(arrays, Preprocess(10), None, 16, 0, start))
        begin = time.perf_counter()
        next(stream)
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] < 10 * seconds[0] + 0.5


CHILD = """
import sys, hashlib
import numpy as np
from dlkit.data import Preprocess, from_arrays, train_pipeline, augment as a
images = np.random.default_rng(0).integers(0, 256, (40, 10, 10, 3), dtype=np.uint8)
chain = (a.Affine(10, 0.1), a.Color(0.2, 0.2, 0.2), a.GaussianNoise(0.05), a.MixUp(0.4))
start, stop = map(int, sys.argv[1:])
stream = train_pipeline(from_arrays(images, np.arange(40) % 4), Preprocess(10), chain, 16, 3, start)
for step, (x, y) in enumerate(stream.take(stop - start).as_numpy_iterator(), start):
    print(step, hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_is_continued_to_the_same_bits():
    def lines(start, stop, kill_at=None):
        command = [sys.executable, "-c", CHILD, str(start), str(stop)]
        seen = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                seen.append(line.split())
                if kill_at is not None and int(seen[-1][0]) >= kill_at:
                    process.kill()
                    break
        return {int(step): digest for step, digest in seen}

    whole = lines(0, 12)
    assert len(whole) == 12
    done = lines(0, 10**6, kill_at=4)
    done |= lines(5, 12)
    assert {step: done[step] for step in whole} == whole
