"""Files that cannot be read are found, named and left out; nothing else is lost."""

import os
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from data_pictures import encoded, folder, photo

from dlkit._errors import InputError
from dlkit.data import Preprocess, eval_pipeline, from_folder, train_pipeline

Image = pytest.importorskip("PIL.Image")


def png_header(width, height):
    """A PNG that declares a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def jpeg_bomb():
    content = bytearray(encoded(photo(), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    return bytes(content)


def frame_bomb():
    """A GIF whose screen is small and whose first frame is not."""
    content = bytearray(encoded(Image.fromarray(photo()).quantize(4), "GIF"))
    at = content.index(b"\x2c\0\0\0\0")
    content[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    return bytes(content)


BAD = {
    "frame.gif": (frame_bomb(), "bomb"),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"this is no picture at all", "not a picture"),
    "html.png": (b"<html><body>404</body></html>", "not a picture"),
    "cut.jpg": (encoded(photo(200, 300), "JPEG")[:900], "damaged"),
    "cut.png": (encoded(photo(), "PNG")[:900], "damaged"),
    "head.jpg": (b"\xff\xd8\xff\xe0", "damaged"),
    "bomb.png": (png_header(60_000, 60_000), "bomb"),
    "bomb.jpg": (jpeg_bomb(), "damaged"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\0" * 20, "bomb"),
    "bomb.bmp": (b"BM" + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, 50_000, 50_000, 1, 24) + b"\0" * 40, "bomb"),
}
GOOD = {
    "grey.jpg": lambda: encoded(Image.fromarray(photo()).convert("L"), "JPEG"),
    "cmyk.jpg": lambda: encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"),
    "palette.png": lambda: encoded(Image.fromarray(photo()).quantize(9), "PNG"),
    "deep.png": lambda: encoded(Image.fromarray(photo()[..., 0].astype(np.uint16) * 257), "PNG"),
    "moving.gif": lambda: encoded(Image.fromarray(photo()).quantize(9), "GIF", save_all=True,
                                  append_images=[Image.fromarray(photo(seed=2)).quantize(9)]),
    "web.webp": lambda: encoded(photo(), "WEBP"),
    "really a png.jpg": lambda: encoded(photo(), "PNG"),
    "день рождения 誕生日.png": lambda: encoded(photo(), "PNG"),
    "n" * 250 + ".png": lambda: encoded(photo(), "PNG"),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A folder of good files, bad ones and links."""
    place = tmp_path_factory.mktemp("spoilt")
    root = folder(place / "pets")
    for name, (content, _) in BAD.items():
        (root / "cat" / name).write_bytes(content)
    for name, make in GOOD.items():
        (root / "dog" / name).write_bytes(make())
    (place / "elsewhere.png").write_bytes(encoded(photo(), "PNG"))
    (root / "cat" / "nowhere.jpg").symlink_to(place / "gone.jpg")
    (root / "dog" / "outside.png").symlink_to(place / "elsewhere.png")
    (root / "dog" / "loop").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def checked(spoilt):
    """The source of that folder after its check, which reads everything and builds a graph: over a second each."""
    source = from_folder(spoilt)
    assert not source.check(progress=False).ok
    return source


def test_check_names_every_bad_file_with_its_class_and_reason(checked):
    report = checked.check()
    found = {name: (label, reason) for name, label, reason in report.bad}
    assert sorted(found) == sorted([*(f"cat/{name}" for name in BAD), "cat/nowhere.jpg", "dog/outside.png"])
    for name, (_, word) in BAD.items():
        label, reason = found[f"cat/{name}"]
        assert label == "cat"
        assert word in reason, f"{name}: {reason}"
    assert "leads out of the folder" in found["cat/nowhere.jpg"][1]
    assert "leads out of the folder" in found["dog/outside.png"][1]
    assert f"{len(found)} cannot be used" in str(report)


def test_training_and_evaluation_refuse_with_the_list(checked):
    for start in (
        lambda: train_pipeline(checked, Preprocess(8), None, 4, 0),
        lambda: eval_pipeline(checked, Preprocess(8), 4),
    ):
        with pytest.raises(InputError, match=r"text\.jpg") as error:
            start()
        assert all(name in str(error.value) for name in BAD)
        assert "on_bad='skip'" in str(error.value)


def test_skipping_leaves_out_exactly_the_bad_files(spoilt, checked):
    """Here with links followed: then one of the two is a good file, and the other leads to none."""
    everything = len(checked)
    with pytest.warns(UserWarning, match=f"{len(BAD) + 1} of {everything} samples"):
        source = from_folder(spoilt, on_bad="skip", follow_links=True)
    assert len(source) == everything - len(BAD) - 1
    reasons = dict(source.skipped)
    assert sorted(reasons) == sorted([*(f"cat/{name}" for name in BAD), "cat/nowhere.jpg"])
    assert "No such file" in reasons["cat/nowhere.jpg"]
    assert sum(name.startswith("dog/") for name in source.identities) == 5 + len(GOOD)
    with pytest.warns(UserWarning, match=f"{len(BAD) + 2} of {everything} samples"):
        inside = checked.without_bad()
    assert inside.identities == [name for name in source.identities if name != "dog/outside.png"]
    good = np.flatnonzero(np.isin(checked.identities, inside.identities))
    assert from_folder(spoilt).subset(good).fingerprint == inside.fingerprint  # without any check
    dataset = eval_pipeline(source, Preprocess(8), 4)
    assert dataset.cardinality() == -(-len(source) // 4)
    assert sum(len(x) for x, _ in dataset) == len(source)


def test_unreadable_permissions_are_named(tmp_path):
    root = folder(tmp_path)
    secret = root / "cat" / "000.png"
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user may read everything")
    assert from_folder(root).check(progress=False).bad[0][2] == "Permission denied"


def test_a_source_of_bad_files_alone_is_refused(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.jpg").write_bytes(b"no")
    with pytest.raises(InputError, match="every sample is bad"):
        from_folder(tmp_path, on_bad="skip")


@pytest.mark.slow
def test_five_percent_broken_files_of_two_thousand_are_found_exactly(tmp_path):
    rng = np.random.default_rng(0)
    good = [encoded(photo(20, 20, seed=i), kind) for i, kind in enumerate(["JPEG", "PNG", "BMP", "GIF", "WEBP"])]
    broken, kinds = set(rng.choice(2000, 100, replace=False).tolist()), [content for content, _ in BAD.values()]
    for i in range(2000):
        label = tmp_path / f"class{i % 4}"
        label.mkdir(exist_ok=True)
        content = kinds[i % len(kinds)] if i in broken else good[i % 5]
        (label / f"{i:04}.jpg").write_bytes(content)
    with pytest.warns(UserWarning, match="100 of 2000"):
        source = from_folder(tmp_path, on_bad="skip")
    assert len(source) == 1900
    assert {int(name[-8:-4]) for name, _ in source.skipped} == broken
    seen = sum(len(x) for x, _ in eval_pipeline(source, Preprocess(8), 64))
    assert seen == 1900


@pytest.mark.slow
def test_two_thousand_mutated_files_neither_crash_nor_hang_nor_eat_memory(tmp_path):
    """Every mutant is either read or reported; the limit on time and memory is for all of them together."""
    rng = np.random.default_rng(0)
    image = photo(48, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encoded(image, "JPEG", exif=exif), encoded(image, "JPEG", progressive=True), encoded(image, "PNG"),
        encoded(Image.fromarray(image).quantize(64), "PNG"), encoded(image, "BMP"), encoded(image, "WEBP"),
        encoded(Image.fromarray(image).quantize(64), "GIF"), encoded(Image.fromarray(image).convert("CMYK"), "JPEG"),
        encoded(image, "PNG", exif=exif), encoded(image, "WEBP", exif=exif),
    ]  # fmt: skip
    for label in "ab":
        (tmp_path / label).mkdir()
    for i in range(2400):
        (tmp_path / "ab"[i % 2] / f"{i}.jpg").write_bytes(_mutated(bytearray(seeds[i % len(seeds)]), rng))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    source = from_folder(tmp_path)
    report = source.check(progress=False)
    assert time.perf_counter() - start < 60
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000
    )  # KiB: two pictures at the pixel limit
    assert 100 < len(report.bad) < 2350
    assert all(reason for _, _, reason in report.bad)
    with pytest.warns(UserWarning, match="skipped"):
        rest = source.without_bad(progress=False)
    seen = sum(len(x) for x, _ in eval_pipeline(rest, Preprocess(16), 64))
    assert seen == 2400 - len(report.bad)


def _mutated(content, rng):
    kind = rng.integers(5)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        for at in rng.integers(0, len(content), rng.integers(1, 20)):
            content[at] ^= 1 << rng.integers(8)
    elif kind == 2:
        at = rng.integers(0, min(len(content), 64))
        content[at : at + 4] = rng.bytes(4)
    elif kind == 3:
        at = rng.integers(0, len(content))
        content[at:at] = rng.bytes(int(rng.integers(1, 64)))
    else:
        first, last = sorted(rng.integers(0, len(content), 2))
        del content[first:last]
    return bytes(content)
