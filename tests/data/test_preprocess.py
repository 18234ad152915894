"""One preparation for training, evaluation and serving."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from data_pictures import encoded, folder, photo

from dlkit._errors import InputError
from dlkit.data import Preprocess, Standardize, eval_pipeline, from_arrays, from_folder

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")


def decoded(content, channels=3):
    return Preprocess(8, channels=channels).read(tf.constant(content)).numpy()


def test_it_is_a_frozen_value_that_survives_json():
    one = Preprocess((30, 20), channels=1, resize=40, mean=0.4, std=[0.3], interpolation="bicubic")
    again = Preprocess.from_config(json.loads(json.dumps(one.get_config())))
    assert again == one
    assert hash(again) == hash(one)
    assert one.input_shape == (30, 20, 1)
    assert Preprocess(8) == Preprocess((8, 8)) != Preprocess(9)
    assert Preprocess(np.int64(8), mean=np.array([0.5, 0.25, 0.5])) == Preprocess(8, mean=(0.5, 0.25, 0.5))
    with pytest.raises(AttributeError):
        one.size = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"size": (4, 5, 6)}, "pair"),
        ({"size": 8, "channels": 2}, "channels=2"),
        ({"size": 8, "interpolation": "cubic"}, "bicubic"),
        ({"size": 8, "resize": 7}, "resize=7"),
        ({"size": 8, "mean": (0.1, 0.2)}, "mean has 2 numbers"),
        ({"size": 8, "std": 0.0}, "std"),
        ({"size": 8, "std": np.inf}, "std"),
        ({"size": 8, "mean": np.nan}, "mean=.*0..1"),
        ({"size": 8, "mean": 127.5, "std": 127.5}, "divide grey levels by 255"),
        ({"size": 8, "mean": "grey"}, "mean='grey' is no number"),
        ({"size": 8.0}, "size=8.0"),
        ({"size": (8.5, 8)}, "size=.8.5"),
        ({"size": 8, "resize": 10.5}, "resize=10.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**arguments)


def test_unknown_config_names_are_refused():
    with pytest.raises(InputError, match="colour"):
        Preprocess.from_config({"size": [8, 8], "colour": 1})


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg_decodes_like_pillow_to_the_last_bit(mode, quality):
    content = encoded(Image.fromarray(photo()).convert(mode), "JPEG", quality=quality)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    tolerance = 1 if mode == "CMYK" else 0  # Pillow rounds the product of two inks differently
    assert np.abs(decoded(content).astype(int) - expected).max() <= tolerance


def turned(kind, orientation, **options):
    """A file with an EXIF orientation, and what Pillow shows of it."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    content = encoded(photo(24, 33), kind, exif=exif, **options)
    return content, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind, orientation):
    content, expected = turned(kind, orientation)
    assert expected.shape[:2] == ((24, 33) if orientation < 5 else (33, 24))
    np.testing.assert_array_equal(decoded(content), expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"comment": b"x" * 300}),
        ("JPEG", {"dpi": (300, 300), "icc_profile": b"profile" * 40}),
        ("PNG", {"dpi": (300, 300), "icc_profile": b"profile" * 40}),
        ("WEBP", {"icc_profile": b"profile" * 41, "lossless": True}),
    ],
)
def test_exif_orientation_is_found_behind_other_metadata(kind, options):
    content, expected = turned(kind, 6, **options)
    np.testing.assert_array_equal(decoded(content), expected)


def test_a_transparent_picture_turns_with_its_transparency():
    exif = Image.Exif()
    exif[0x0112] = 8
    rgba = np.dstack([photo(20, 30), np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)])
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        content = encoded(rgba, kind, exif=exif, **options)
        np.testing.assert_array_equal(decoded(content, 4), np.rot90(rgba))


def test_broken_exif_counts_as_none():
    for kind in ("JPEG", "WEBP"):  # a PNG's checksum gives it away: libpng refuses the file
        content, _ = turned(kind, 6)
        start = content.index(b"MM\0*")
        for cut in (b"\xff" * 8, b"MM\x00*\x7f\xff\xff\xff", b"II*\x00\xff\xff\xff\xff"):
            broken = content[:start] + cut + content[start + 8 :]
            assert decoded(broken).shape == (24, 33, 3)
    content, _ = turned("WEBP", 6)
    at = content.index(b"EXIF") + 4
    for size in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)):
        assert decoded(content[:at] + size + content[at + 4 :]).shape[2] == 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind):
    image = photo() if kind != "GIF" else (photo() // 128) * 128
    content = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decoded(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_are_blended_over_white(kind):
    rgba = np.dstack([photo(20, 30), np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)])
    content = encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    alpha = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(content) - expected).max() <= 0.51
    np.testing.assert_array_equal(decoded(content, 4), rgba)


def test_palette_and_sixteen_bit_png():
    palette = Image.fromarray(photo()).quantize(16)
    content = encoded(palette, "PNG", transparency=0)
    alpha = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    expected = np.where(alpha[..., 3:] == 0, 255, alpha[..., :3])
    np.testing.assert_array_equal(decoded(content), expected)
    deep = Image.fromarray(photo()[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(decoded(encoded(deep, "PNG"), 1)[..., 0], photo()[..., 0])


def test_luma_is_that_of_pillow():
    expected = np.asarray(Image.fromarray(photo()).convert("L"))
    np.testing.assert_array_equal(decoded(encoded(photo(), "PNG"), 1)[..., 0], expected)


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(photo(seed=i)).quantize(8) for i in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(content), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"RIFF1234WEBP"]
)
def test_what_is_no_picture_is_an_error_of_the_graph(content):
    with pytest.raises(tf.errors.OpError):
        decoded(content)


@pytest.mark.parametrize(
    ("size", "interpolation"), [((20, 30), "bilinear"), ((97, 61), "bilinear"), ((20, 30), "bicubic")]
)
def test_resizing_equals_pillow_within_one_grey_level(size, interpolation):
    image = photo(80, 100)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], filters[interpolation])).astype(int)
    result = Preprocess(size, interpolation=interpolation).fit(tf.constant(image)).numpy()
    difference = np.abs(result - expected)
    assert difference.max() <= (
        1 if interpolation == "bilinear" else 6
    )  # keys' cubic has a = -0.5 in both; rounding twice
    assert difference.mean() < 0.3


def test_an_int_resize_takes_the_shorter_side_and_crops_the_centre():
    image = photo(60, 90)
    result = Preprocess(24, resize=30).fit(tf.constant(image)).numpy()
    expected = np.asarray(Image.fromarray(image).resize((45, 30), Image.Resampling.BILINEAR))[3:27, 10:34].astype(int)
    assert np.abs(result - expected).max() <= 1


def test_channels_follow_the_preprocess():
    grey = tf.constant(photo()[..., :1])
    assert Preprocess((40, 56)).fit(grey).shape == (40, 56, 3)
    assert Preprocess((40, 56), channels=1).fit(tf.constant(photo())).shape == (40, 56, 1)
    with pytest.raises(InputError, match="5 channels"):
        Preprocess(8).fit(tf.zeros([8, 8, 5], tf.uint8))


def test_normalisation_is_the_formula_of_the_docstring():
    preprocess = Preprocess(8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = photo(8, 8)[None]
    expected = (image / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(preprocess.from_images(image).numpy(), expected, atol=2e-6)


def test_an_exported_graph_gives_the_very_bits_of_the_evaluation_pipeline(tmp_path):
    root = folder(tmp_path / "pictures", size=(23, 31))
    (root / "cat" / "photo.jpg").write_bytes(encoded(photo(50, 64), "JPEG"))
    preprocess = Preprocess(16, resize=18)
    module = tf.Module()
    signature = [tf.TensorSpec([None], tf.string)]
    module.serve = tf.function(preprocess.from_bytes, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path / "export"))
    source = from_folder(root)
    served = tf.saved_model.load(str(tmp_path / "export")).serve
    contents = tf.constant([source.store.content(i) for i in range(len(source))])
    expected = np.concatenate([x for x, _ in eval_pipeline(source, preprocess, 4).as_numpy_iterator()])
    np.testing.assert_array_equal(served(contents).numpy(), expected)
    assert served(tf.constant([], tf.string)).shape == (0, 16, 16, 3)


def test_standardize_takes_its_numbers_from_a_table():
    table = np.random.default_rng(0).normal(3, 2, (50, 4))
    table[:, 2] = 7
    source = from_arrays(table, np.zeros(50))
    one = Standardize.of(source)
    result = one.from_rows(table).numpy()
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(0), [1, 1, 0, 1], atol=1e-5)
    assert Standardize.from_config(json.loads(json.dumps(one.get_config()))) == one
    with pytest.raises(InputError, match="pictures"):
        Standardize.of(from_arrays(np.zeros([2, 4, 4, 1], np.uint8), [0, 1]))
    with pytest.raises(InputError, match="finite"):
        Standardize((np.nan,), (1.0,))


def test_standardize_reads_no_pictures_to_refuse_them(tmp_path):
    with pytest.raises(InputError, match="pictures"):
        Standardize.of(from_folder(folder(tmp_path)))
