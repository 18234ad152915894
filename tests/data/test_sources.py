"""Sources: what they hold, how they split, and what they refuse."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from data_pictures import encoded, folder, photo

from dlkit._errors import InputError
from dlkit.data import Preprocess, eval_pipeline, from_arrays, from_folder, train_pipeline

pytest.importorskip("PIL")


def pictures(count=12, side=8):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "empty"),
        ((pictures(3), [0, 1]), "x has 3 samples and y has 2"),
        ((pictures(3).astype(np.float32), [0, 1, 0]), "uint8"),
        ((np.zeros((3, 4, 4, 2), np.uint8), [0, 1, 0]), "neither pictures"),
        ((pictures(3), [[0, 1], [1, 0], [0, 1]]), "one-hot"),
        ((pictures(2), None), "boxes"),
        ((np.full((2, 3), np.nan), [0, 1]), "x is not finite in 2 rows, first row 0"),
        ((np.ones((2, 3)), [0.5, np.inf]), "y is not finite in 1 rows, first row 1"),
        ((np.array([["a"], ["b"]]), [0, 1]), "holds no numbers"),
    ],
)
def test_wrong_arrays_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        from_arrays(*arguments)


@pytest.mark.parametrize("classes", [["a", "b", "a"], ["a", "b"]])
def test_class_names_are_those_of_class_ids_and_each_its_own(tmp_path, classes):
    twice = len(classes) == 3
    with pytest.raises(InputError, match="classes name 'a' twice" if twice else r"pass y\.astype\(int\)"):
        from_arrays(pictures(3), [0, 1, 0] if twice else [0.0, 1.0, 0.0], classes=classes)
    with pytest.raises(InputError, match="'a' twice" if twice else "y is None"):
        from_folder(tmp_path, classes=classes) if twice else from_arrays(
            pictures(1), None, boxes=[[0, 0, 1, 1]], classes=classes
        )


def test_labels_must_match_the_classes():
    with pytest.raises(InputError, match="class id 2 of sample 1"):
        from_arrays(pictures(3), [0, 2, 1], classes=["a", "b"])
    with pytest.raises(InputError, match="class id -1"):
        from_arrays(pictures(3), [0, -1, 1])


@pytest.mark.parametrize("box", [[0.5, 0, 0.6, 0.5], [-0.1, 0, 0.5, 0.5], [0, 0, 0, 0.5], [0, np.nan, 0.5, 0.5]])
def test_boxes_outside_the_picture_are_refused(box):
    with pytest.raises(InputError, match="leaves the picture"):
        from_arrays(pictures(2), None, boxes=[[0, 0, 1, 1], box])


def test_each_task_yields_its_targets():
    boxes = np.tile([0.1, 0.2, 0.3, 0.4], (4, 1))
    cases = [
        (from_arrays(pictures(4), [0, 1, 2, 0]), "classification", np.eye(3)[[0, 1, 2, 0]]),
        (from_arrays(np.ones((4, 2)), np.arange(4.0)), "regression", np.arange(4.0)[:, None]),
        (from_arrays(pictures(4), None, boxes=boxes), "box", boxes),
    ]
    for source, task, expected in cases:
        assert source.task == task
        targets = source.targets(tf.range(4)).numpy()
        assert targets.dtype == np.float32
        np.testing.assert_allclose(targets, expected)
    both = from_arrays(pictures(4), [0, 1, 1, 0], boxes=boxes)
    assert sorted(both.targets(tf.range(2))) == ["box", "label"]
    assert both.as_task("classification").targets(tf.range(2)).shape == (2, 2)
    assert both.as_task("box").targets(tf.range(2)).shape == (2, 4)
    with pytest.raises(InputError, match="carries no targets"):
        both.as_task("regression")


def membership(source, seed=0, **options):
    parts = source.split(0.6, 0.2, 0.2, seed=seed, **options)
    return {name: number for number, part in enumerate(parts) for name in part.identities}


def test_split_membership_depends_on_identity_not_on_order_or_company():
    x, y = pictures(200), np.arange(200) % 4
    expected = membership(from_arrays(x, y))
    assert len(expected) == 200
    shuffle = np.random.default_rng(1).permutation(200)
    assert membership(from_arrays(x[shuffle], y[shuffle])) == expected
    fewer = membership(from_arrays(x[:120], y[:120]))
    assert fewer == {name: expected[name] for name in fewer}
    assert membership(from_arrays(x, y), seed=1) != expected


def test_split_sizes_follow_the_fractions():
    source = from_arrays(np.arange(20_000.0).reshape(10_000, 2), np.arange(10_000) % 2)
    sizes = [len(part) for part in source.split(0.7, 0.2)]
    assert np.abs(np.array(sizes) - [7000, 2000]).max() < 4 * np.sqrt(10_000 * 0.25)


def test_a_stratified_split_gives_every_class_its_exact_share():
    y = np.repeat([0, 1, 2], [100, 50, 10])
    train, test = from_arrays(pictures(160), y).split(0.8, 0.2, stratify=True)
    assert train.class_counts == {"0": 80, "1": 40, "2": 8}
    assert test.class_counts == {"0": 20, "1": 10, "2": 2}


def test_no_part_of_a_split_is_empty():
    for seed in range(20):
        parts = from_arrays(pictures(5), [0, 1, 0, 1, 0]).split(0.9, 0.05, 0.05, seed=seed)
        assert min(map(len, parts)) >= 1
        assert sum(map(len, parts)) == 5
        few = from_arrays(pictures(2), [0, 1]).split(0.01, 0.01, seed=seed)  # both samples may be left over
        assert list(map(len, few)) == [1, 1]


@pytest.mark.parametrize("fractions", [(), (0.9, 0.2), (0.5, 0.0), (1.5,), (0.1,) * 13])
def test_wrong_fractions_are_refused(fractions):
    with pytest.raises(InputError):
        from_arrays(pictures(12), np.arange(12) % 2).split(*fractions)


def test_class_weights_make_classes_equal():
    source = from_arrays(pictures(12), [0] * 9 + [1] * 3, classes=["a", "b", "c"])
    assert source.class_counts == {"a": 9, "b": 3, "c": 0}
    assert source.class_weights == {0: pytest.approx(12 / 27), 1: pytest.approx(12 / 9), 2: 0.0}


def test_the_fingerprint_changes_with_content_targets_order_and_classes():
    x, y = pictures(), np.arange(12) % 2
    changed = x.copy()
    changed[3, 0, 0, 0] ^= 1
    sources = [
        from_arrays(x, y), from_arrays(changed, y), from_arrays(x, 1 - y), from_arrays(x[::-1], y[::-1]),
        from_arrays(x, y, classes=["a", "b"]),
    ]  # fmt: skip
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert from_arrays(x, y, name="other").fingerprint == sources[0].fingerprint


def test_a_folder_gives_sorted_classes_and_files(tmp_path, monkeypatch):
    root = folder(tmp_path / "pets", classes=("dog", "cat"))
    (root / ".hidden").mkdir()
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "x.JPG").write_bytes(encoded(photo(), "JPEG"))
    (root / "cat" / "notes.txt").write_text("no picture")
    source = from_folder(root)
    assert source.classes == ("cat", "dog")
    assert source.name == "pets"
    assert source.identities == [f"cat/{i:03}.png" for i in range(4)] + ["cat/deep/x.JPG"] + [
        f"dog/{i:03}.png" for i in range(4)
    ]
    assert source.class_counts == {"cat": 5, "dog": 4}
    fingerprint = source.fingerprint
    monkeypatch.chdir(root.parent)
    relative = from_folder("pets")
    monkeypatch.chdir(root)  # a source keeps its files when the working directory changes
    assert relative.fingerprint == fingerprint
    (root / "dog" / "000.png").write_bytes(b"changed")
    assert from_folder(root).fingerprint != fingerprint


def test_pictures_of_formats_that_are_not_read_are_left_out_with_a_warning(tmp_path):
    root = folder(tmp_path / "pets")
    for name in ("cat/scan.tif", "dog/phone.HEIC", "dog/other.tif"):
        (root / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"3 pictures in .* are left out: \.heic, \.tif is not read"):
        source = from_folder(root)
    assert source.identities == from_folder(folder(tmp_path / "same")).identities


def test_the_fingerprint_of_files_is_that_of_their_content(tmp_path):
    """The same files elsewhere and in memory have the same one; one byte, a name or an order of classes changes it."""
    source = from_folder(folder(tmp_path / "pets"))
    fingerprint = source.fingerprint
    shutil.copytree(tmp_path / "pets", tmp_path / "other place")
    os.utime(tmp_path / "other place" / "cat" / "000.png", (0, 0))
    elsewhere = from_folder(tmp_path / "other place")
    assert elsewhere.check(progress=False).ok  # the check reads every file: what it saw is not read again
    (tmp_path / "other place").rename(tmp_path / "gone")
    assert elsewhere.fingerprint == source.cached().fingerprint == fingerprint
    assert elsewhere.split(0.5, 0.5)[0].fingerprint == source.split(0.5, 0.5)[0].fingerprint != fingerprint
    picture = tmp_path / "pets" / "cat" / "000.png"
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    assert from_folder(tmp_path / "pets").fingerprint != fingerprint
    content[-20] ^= 1
    picture.write_bytes(content)
    assert from_folder(tmp_path / "pets").fingerprint == fingerprint
    preprocess = Preprocess(12)
    assert source.cached("decoded", preprocess=preprocess).fingerprint != fingerprint


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        from_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no pictures"):
        from_folder(tmp_path)
    folder(tmp_path / "one", classes=("cat",))
    with pytest.raises(InputError, match="one class, 'cat'"):
        from_folder(tmp_path / "one")
    root = folder(tmp_path / "two")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match=r"without pictures.*empty"):
        from_folder(root)
    with pytest.raises(InputError, match="classes lacks: dog"):
        from_folder(root, classes=["cat", "cow"])
    with pytest.raises(InputError, match="on_bad='ignore'"):
        from_folder(root, on_bad="ignore")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match="neither a folder nor a table"):
        from_folder(tmp_path / "a.txt")


def table(root, rows, kind="csv"):
    path = root / f"labels.{kind}"
    if kind == "csv":
        header = list(rows[0])
        path.write_text("\n".join([",".join(header), *(",".join(str(row[h]) for h in header) for row in rows)]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_give_labels_and_boxes(tmp_path, kind):
    folder(tmp_path, classes=("cat", "dog"), per_class=2)
    rows = [
        {"path": "dog/001.png", "label": "spitz", "x": 0.1, "y": 0.2, "width": 0.5, "height": 0.6},
        {"path": "cat/000.png", "label": "manul", "x": 0, "y": 0, "width": 1, "height": 1},
    ]
    source = from_folder(table(tmp_path, rows, kind))
    assert source.task == "box"
    assert source.classes == ("manul", "spitz")
    assert source.identities == ["cat/000.png", "dog/001.png"]
    np.testing.assert_allclose(source.boxes, [[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.6]])
    inputs, targets = next(iter(eval_pipeline(source, Preprocess(8), 2)))
    assert inputs.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(targets["label"], np.eye(2))
    labels = from_folder(table(tmp_path, [{"path": r["path"], "label": r["label"]} for r in rows], kind))
    assert labels.task == "classification"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "cat/000.png", "label": "a"}, "twice, in lines"),
        ({"path": "./cat//000.png", "label": "a"}, "twice, in lines"),
        ({"path": "../x.png", "label": "a"}, "leads out of"),
        ({"path": "/etc/x.png", "label": "a"}, "leads out of"),
        ({"path": "cat/001.png", "label": "horse"}, "class 'horse' of cat/001.png is not among a, b"),
        ({"path": "cat/001.png", "label": ""}, "has no label"),
        ({"path": "cat/001.png", "label": "a", "box": "1 2 3"}, "has 3 numbers, not 4"),
        ({"path": "cat/001.png", "label": "a", "box": "a b c d"}, "no box of four numbers"),
        ({"path": "cat/001.png", "label": "a", "box": "0.5 0 0.6 1"}, "box .* of cat/001.png .* leaves the picture"),
    ],
)
def test_wrong_table_rows_are_refused(tmp_path, row, message):
    folder(tmp_path)
    rows = [{"path": "cat/000.png", "label": "a"}, {"path": "dog/000.png", "label": "b"}, row]
    if "box" in row:
        rows = [{"box": "0 0 1 1", **r} for r in rows]
    with pytest.raises(InputError, match=message):
        from_folder(table(tmp_path, rows), classes=["a", "b"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\nx.png,a\n", "no column 'path'"),
        ("a.csv", "path,label\nx.png\n", "line 2: 2 fields"),
        ("a.csv", "path,label\n", "lists no pictures"),
        ("a.csv", "path,size\nx.png,3\n", "neither a label nor a box"),
        ("a.csv", "path,label\nx.png,a\ny.png,a\n", "one class, 'a'"),
        ("a.csv", "path,box\nx.png,0 0 1 1\n", "name labels, and .* has none"),
        ("a.jsonl", '{"path": "x.png", "label": 1}\n{oops\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "not an object with a path"),
    ],
)
def test_broken_tables_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        from_folder(tmp_path / name, classes=["a", "b"] if "box" in text else None)


def test_caching_keeps_the_pixels_and_the_budget(tmp_path):
    source = from_folder(folder(tmp_path / "pets"))
    preprocess = Preprocess(12)
    expected = next(iter(eval_pipeline(source, preprocess, 8)))[0].numpy()
    encoded_in_memory = source.cached("encoded")
    decoded_in_memory = source.cached("decoded", preprocess=preprocess)
    for file in (tmp_path / "pets").rglob("*.png"):
        file.unlink()
    for cached in (encoded_in_memory, decoded_in_memory):
        np.testing.assert_array_equal(next(iter(eval_pipeline(cached, preprocess, 8)))[0].numpy(), expected)
        assert cached.identities == source.identities
        assert membership(cached) == membership(source)
    with pytest.raises(InputError, match="in memory already"):
        decoded_in_memory.cached()
    with pytest.raises(InputError, match="GiB, the budget is"):
        source.cached("decoded", preprocess=Preprocess(1000), budget=0.001)
    with pytest.raises(InputError, match="with a Preprocess"):
        source.cached("decoded")


def test_evaluation_visits_every_sample_once_in_order():
    source = from_arrays(pictures(10), np.arange(10))
    dataset = eval_pipeline(source, Preprocess(8), 4)
    assert dataset.cardinality() == 3
    batches = list(dataset.as_numpy_iterator())
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert np.concatenate([y for _, y in batches]).argmax(1).tolist() == list(range(10))
    with pytest.raises(InputError, match="batch=0"):
        eval_pipeline(source, Preprocess(8), 0)


def test_subsets_refuse_samples_that_are_not_there():
    source = from_arrays(pictures(12), np.arange(12))
    for indices, message in (
        ([0, 12], "index 12"),
        ([-1, 3], "index -1"),
        (np.arange(12) < 3, "flatnonzero"),
        ([0.5], "float64"),
    ):
        with pytest.raises(InputError, match=message):
            source.subset(indices)
    assert len(source.subset([])) == 0
    for start in (
        lambda: train_pipeline(source.subset([]), Preprocess(8), None, 4, 0),
        lambda: eval_pipeline(source.subset([]), Preprocess(8), 4),
    ):
        with pytest.raises(InputError, match="is empty"):
            start()
