"""Augmentations: one table of cases, the contract, and numbers worked out another way."""

import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import augment as a
from dlkit.data.augment import mix
from dlkit.testing import check_augmentation

CASES = {  # operation, the same with zero strength
    "Affine": (a.Affine(20, 0.1, (0.6, 1.2), 10), a.Affine()),
    "Flip": (a.Flip(0.5, 0.5), a.Flip(0.0)),
    "RandomCrop": (a.RandomCrop(3), a.RandomCrop(0)),
    "RandomResizedCrop": (a.RandomResizedCrop(), a.RandomResizedCrop((1.0, 1.0), (1.0, 1.0))),
    "Color": (a.Color(0.3, 0.3, 0.3, 30, 0.2), a.Color()),
    "GaussianNoise": (a.GaussianNoise(0.1), a.GaussianNoise(0.0)),
    "Blur": (a.Blur(1.0), a.Blur(0.0)),
    "Erase": (a.Erase(fill="noise"), a.Erase(0.0)),
    "RandAugment": (a.RandAugment(2, 15), None),
    "TrivialAugment": (a.TrivialAugment(), None),
    "MixUp": (a.MixUp(0.5), None),
    "CutMix": (a.CutMix(), None),
}
NOT_OPERATIONS = {"preview", "views", "Augmentation", "Geometry", "Pixels", "Matrix", "Colors", "Chain"}


def test_every_public_operation_has_a_case():
    assert set(a.__all__) - NOT_OPERATIONS == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_contract(name):
    op, identity = CASES[name]
    size = (10, 10) if name == "RandomResizedCrop" else (10, 8)
    check_augmentation(op, identity=identity, size=size)


class Nothing(a.Augmentation):
    """Has a colour that nobody would ask it for."""

    def color(self, u, mean):
        raise AssertionError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a.Affine(scale=(0.0, 1.0)), "scale"),
        (lambda: a.Affine(rotate=(5, -5)), "must not exceed"),
        (lambda: a.Affine(rotate=float("nan")), "both finite"),
        (lambda: a.Affine(rotate=float("inf")), "both finite"),
        (lambda: a.Affine(shear=90), "90"),
        (lambda: a.Affine(fill="wrap"), "fill='wrap'"),
        (lambda: a.Flip(1.5), "no probability"),
        (lambda: a.Flip("often"), "no probability"),
        (lambda: a.Chain([Nothing()]), "derive Nothing from Geometry, Color or Pixels"),
        (lambda: a.Flip(0.0, mode="alternating"), "contradicts"),
        (lambda: a.RandomCrop(-1), "padding=-1"),
        (lambda: a.RandomResizedCrop((0.5, 1.5)), "area"),
        (lambda: a.Color(brightness=1.5), "at least 0"),
        (lambda: a.GaussianNoise(-1.0), "std"),
        (lambda: a.Blur(17), "16 pixels"),
        (lambda: a.Erase(2.0), "fraction"),
        (lambda: a.Erase(fill="red"), "fill='red'"),
        (lambda: a.MixUp(0.0), "alpha=0.0"),
        (lambda: a.RandAugment(0), "layers=0"),
        (lambda: a.RandAugment(2, 31), "magnitude=31"),
        (lambda: a.views(tf.zeros([1, 4, 4, 3]), shift=4), "shift=4"),
    ],
)
def test_wrong_strengths_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def random_pictures(count=16, height=12, width=14, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def draws(count, columns, seed=1):
    return np.random.default_rng(seed).random((count, columns), np.float32)


def test_the_warp_equals_a_float64_reference():
    """Rotation, shear, zoom and shift by the docstring's formula, read with scipy's bilinear interpolation."""
    ndimage = pytest.importorskip("scipy.ndimage")
    images, u = random_pictures(6), draws(6, 8)
    result = a.Affine(30, 0.2, (1.0, 1.5), 15, fill="edge")(images, u).numpy()
    height, width = images.shape[1:3]
    for picture, row, got in zip(images, u.astype(np.float64), result, strict=True):
        angle = np.radians(-30 + 60 * row[0])
        shear = -np.tan(np.radians(15)) + 2 * np.tan(np.radians(15)) * row[1]
        zoom, shift = 1 + 0.5 * row[2], (-0.2 + 0.4 * row[3:5]) * [width, height]
        matrix = (
            np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]] / zoom
        )
        y, x = np.mgrid[:height, :width]
        output = np.stack([x - (width - 1) / 2, y - (height - 1) / 2]).reshape(2, -1) - shift[:, None]
        place = (matrix @ output).reshape(2, height, width) + np.array([(width - 1) / 2, (height - 1) / 2])[
            :, None, None
        ]
        for channel in range(3):
            expected = ndimage.map_coordinates(
                picture[..., channel].astype(float), place[::-1], order=1, mode="nearest"
            )
            np.testing.assert_allclose(got[..., channel], expected, atol=0.02)


def test_a_window_is_cropped_resized_and_warped_in_one_reading():
    """The same formula for the map from output to window pixels, and the window's own mean for contrast."""
    ndimage = pytest.importorskip("scipy.ndimage")
    window = tf.constant(random_pictures(1, 15, 11)[0])
    u = draws(1, 12)
    chain = a.Chain([a.Affine(30, 0.2, (1.0, 1.5), 15, fill="edge"), a.Color(0.1, 0.2, 0.3)])
    got = chain.of_window(window, (12, 14), u, boxes=None, index=[0], epoch=[0], seed=0)[0].numpy()[0]
    row = u[0].astype(np.float64)
    angle, shear = np.radians(-30 + 60 * row[0]), np.tan(np.radians(15)) * (2 * row[1] - 1)
    zoom, shift = 1 + 0.5 * row[2], (-0.2 + 0.4 * row[3:5]) * [14, 12]
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]] / zoom
    matrix = np.diag([11 / 14, 15 / 12]) @ matrix
    y, x = np.mgrid[:12, :14]
    place = matrix @ (np.stack([x - 6.5, y - 5.5]).reshape(2, -1) - shift[:, None]) + np.array([5.0, 7.0])[:, None]
    picture = window.numpy().astype(float)
    warped = [ndimage.map_coordinates(picture[..., i], place[::-1], order=1, mode="nearest") for i in range(3)]
    warped = np.stack(warped, -1).reshape(12, 14, 3)
    bright, contrast, vivid = 0.9 + 0.2 * row[5], 0.8 + 0.4 * row[6], 0.7 + 0.6 * row[7]
    luma = np.array([0.299, 0.587, 0.114])
    expected = contrast * bright * warped + (1 - contrast) * bright * (picture @ luma).mean()
    expected = vivid * expected + (1 - vivid) * (expected @ luma)[..., None]
    np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=0.03)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "ops", [(), (a.Flip(1.0),), (a.Flip(1.0), a.GaussianNoise(0.0)), (a.Affine(fill=0.5), a.Flip(1.0), a.Erase(0.0))]
)
def test_a_window_of_the_output_s_size_keeps_every_pixel(channels, ops):
    window = random_pictures(1, 12, 14, channels)
    result = (
        a.Chain(ops)
        .of_window(tf.constant(window[0]), (12, 14), draws(1, 16), boxes=None, index=[0], epoch=[0], seed=0)[0]
        .numpy()
    )
    np.testing.assert_array_equal(result, window[:, :, ::-1] if ops else window)


def test_a_map_that_shrinks_a_window_averages_what_it_skips():
    """The same readings as of a picture in a batch."""
    window, u, ops = random_pictures(1, 12, 14), draws(1, 8), [a.Affine(20, scale=(0.4, 0.5), fill=0.5)]
    expected = a.Chain(ops)(window, u)[0]
    got = a.Chain(ops).of_window(tf.constant(window[0]), (12, 14), u, boxes=None, index=[0], epoch=[0], seed=0)[0]
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_policies_and_second_warps_follow_a_window():
    window, u = tf.constant(random_pictures(1, 13, 15)[0]), draws(1, 32)
    whole = a.Chain([a.RandAugment(2, 15)])(window[None], u)[0].numpy()
    same = a.Chain([a.RandAugment(2, 15)]).of_window(window, (13, 15), u, boxes=None, index=[0], epoch=[0], seed=0)[0]
    assert np.abs(same.numpy() - whole).mean() < 0.5  # other rounding on the way to uint8
    chain = a.Chain([a.Affine(10), a.Blur(1.0), a.Affine(10), a.Color(0.2)])
    result = chain.of_window(window, (10, 12), u, boxes=None, index=[0], epoch=[0], seed=0)[0]
    assert result.shape == (1, 10, 12, 3)
    assert 0 <= result.numpy().min() <= result.numpy().max() <= 255


def test_uint8_results_are_the_rounded_values():
    images, u = random_pictures(4), draws(4, 8)
    exact = a.Color(0.3, 0.3)(images, u).numpy()
    rounded = a.Color(0.3, 0.3)(images, u, dtype="uint8").numpy()
    assert rounded.dtype == np.uint8
    assert np.abs(rounded - exact).max() <= 0.5
    with pytest.raises(InputError, match="dtype='int8'"):
        a.Color()(images, u, dtype="int8")


def test_flips_and_crops_move_whole_pixels():
    images, u = random_pictures(), draws(16, 4)
    flipped = a.Flip(0.5, 0.5)(images, u).numpy()
    cropped = a.RandomCrop(3)(images, u).numpy()
    padded = np.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)])
    for i, (left, top) in enumerate(np.floor(u[:, :2] * 7).astype(int)):
        expected = images[i][:: -1 if u[i, 1] < 0.5 else 1, :: -1 if u[i, 0] < 0.5 else 1]
        np.testing.assert_array_equal(flipped[i], expected)
        np.testing.assert_array_equal(cropped[i], padded[i, top : top + 12, left : left + 14])


def test_the_alternating_flip_shows_both_sides_in_two_epochs():
    images, u, index = random_pictures(16), draws(16, 4), np.arange(16)
    op = a.Flip(mode="alternating")
    epochs = [op(images, u, index=index, epoch=np.full(16, epoch), seed=3).numpy() for epoch in range(3)]
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[0][:, :, ::-1])
    assert 2 < sum((epochs[0][i] == images[i]).all() for i in range(16)) < 14


def test_colours_equal_the_formula_in_float64():
    images, u = random_pictures(), draws(16, 8)
    result = a.Color(0.1, 0.2, 0.3, hue=40, grey=0.25)(images, u).numpy()
    luma, axis = np.array([0.299, 0.587, 0.114]), np.ones(3) / np.sqrt(3)
    for picture, row, got in zip(images, u.astype(np.float64), result, strict=True):
        bright, contrast, vivid = 0.9 + 0.2 * row[0], 0.8 + 0.4 * row[1], 0.7 + 0.6 * row[2]
        angle, vivid = np.radians(-40 + 80 * row[3]), 0.0 if row[4] < 0.25 else vivid
        x = picture * bright
        x = contrast * x + (1 - contrast) * (x @ luma).mean()
        x = x * np.cos(angle) + np.cross(axis, x) * np.sin(angle) + axis * (x @ axis)[..., None] * (1 - np.cos(angle))
        x = vivid * x + (1 - vivid) * (x @ luma)[..., None]
        np.testing.assert_allclose(got, np.clip(x, 0, 255), atol=0.01)


def test_hue_turns_red_to_green_and_keeps_grey():
    red = np.zeros([1, 2, 2, 3], np.uint8)
    red[..., 0] = 200
    grey = np.full([1, 2, 2, 3], 90, np.uint8)
    op = a.Color(hue=(120, 120))
    np.testing.assert_allclose(op(red, draws(1, 8)).numpy()[0, 0, 0], [0, 200, 0], atol=0.01)
    np.testing.assert_allclose(op(grey, draws(1, 8)).numpy(), 90, atol=0.01)


def test_the_fused_chain_equals_its_parts():
    """One warp and one matrix give what the operations give one after the other, up to their rounding and clipping."""
    images = random_pictures() // 2 + 60
    u = draws(16, 12)
    flip, crop, color = a.Flip(), a.RandomCrop(2, fill="edge"), a.Color(0.05, 0.0, 0.1)
    fused = a.Chain([flip, crop, color])(images, u)[0].numpy()
    step = flip(images, u[:, :2]).numpy().astype(np.uint8)
    step = crop(step, u[:, 2:4]).numpy().astype(np.uint8)
    np.testing.assert_allclose(fused, color(step, u[:, 4:9]).numpy(), atol=1e-3)


def test_shrinking_is_antialiased():
    """A fine checkerboard becomes grey, not a coarser checkerboard."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None]
    for zoom in (0.5, 0.43, 0.37):
        small = a.Affine(scale=(zoom, zoom))(board, draws(1, 8)).numpy()[0, 20:44, 20:44]
        assert abs(small.mean() - 127.5) < 3
        assert small.std() < 30


def test_noise_is_normal_and_has_the_strength_asked_for():
    images = np.full([16, 32, 32, 3], 128, np.uint8)
    noise = a.GaussianNoise((0.05, 0.05))(images, draws(16, 4)).numpy() - 128
    standard = noise.ravel() / (0.05 * 255)
    assert abs(standard.mean()) < 4 / np.sqrt(standard.size)
    assert abs(standard.std() - 1) < 4 / np.sqrt(2 * standard.size)
    assert abs((standard**4).mean() - 3) < 4 * np.sqrt(96 / standard.size)
    flat = noise.reshape(16, -1)
    correlation = np.corrcoef(flat)
    assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(flat.shape[1])


def test_blur_equals_a_float64_reference():
    ndimage = pytest.importorskip("scipy.ndimage")
    images = random_pictures(2)
    result = a.Blur((1.2, 1.2))(images, draws(2, 4)).numpy()
    for picture, got in zip(images, result, strict=True):
        expected = ndimage.gaussian_filter(picture.astype(float), (1.2, 1.2, 0), mode="nearest", radius=(4, 4, 0))
        np.testing.assert_allclose(got, expected, atol=0.01)


def test_erasing_covers_the_area_asked_for():
    images = np.full([64, 32, 32, 1], 7, np.uint8)
    inside = a.Erase(area=1 / 16, fill=1.0)(images, draws(64, 8)).numpy()
    assert ((inside == 255).sum((1, 2, 3)) == 64).all()
    outside = a.Erase(area=1 / 16, fill=1.0, inside=False)(images, draws(64, 8)).numpy()
    counts = (outside == 255).sum((1, 2, 3))
    assert counts.max() == 64
    assert counts.min() < 64


def test_mixed_labels_have_the_true_area():
    images = np.zeros([16, 20, 20, 3], np.float32)
    partners = np.ones([16, 20, 20, 3], np.float32)
    for op in (a.MixUp(0.7), a.CutMix()):
        result, share = op.mixed(images, partners, tf.constant(draws(16, 8)))
        np.testing.assert_allclose(1 - result.numpy().mean((1, 2, 3)), share.numpy(), atol=1e-5)
        assert len(np.unique(share.numpy())) > 10


def test_proportions_follow_the_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    u = np.random.default_rng(0).random(20_000).astype(np.float32)
    for alpha in (0.2, 1.0, 2.0):
        drawn = mix.beta(alpha, tf.constant(u)).numpy()
        grid = np.linspace(0.01, 0.99, 50)  # at the ends float32 cannot tell 1 - 1e-9 from 1
        empirical = (drawn[:, None] <= grid).mean(0)
        assert np.abs(empirical - stats.beta(alpha, alpha).cdf(grid)).max() < 1.95 / np.sqrt(
            len(u)
        )  # Kolmogorov, 0.1 %


def test_partners_stay_in_their_tile_and_are_never_oneself():
    partner = mix.partners(tf.constant(32, tf.int64), 48, 0).numpy()
    assert (partner // 16 == np.arange(48) // 16).all()
    assert (partner != np.arange(48)).all()
    assert sorted(partner) == list(range(48))
    np.testing.assert_array_equal(mix.partners(tf.constant(48, tf.int64), 16, 0).numpy() + 16, partner[16:32])


@pytest.mark.parametrize(
    "name", ["equalize", "autocontrast", "posterize", "solarize", "sharpness", "color", "contrast", "brightness"]
)
def test_policy_operations_equal_pillow(name):
    image = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageOps

    from dlkit.data.augment import policy

    pictures = (random_pictures(4, 32, 32) // 2 + 40).astype(np.uint8)
    at = policy.OPERATIONS.index(name)
    u = np.tile(np.array([[(at + 0.5) / len(policy.OPERATIONS), 0.9, 0.0, 0.0]], np.float32), (4, 1))
    result = a.RandAugment(1, 15)(pictures, u).numpy()
    factor = 1 + 0.5 * 0.9
    reference = {
        "equalize": ImageOps.equalize,
        "autocontrast": ImageOps.autocontrast,
        "posterize": lambda x: ImageOps.posterize(x, 6),
        "solarize": lambda x: ImageOps.solarize(x, 128),
        "sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(factor),
        "color": lambda x: ImageEnhance.Color(x).enhance(factor),
        "contrast": lambda x: ImageEnhance.Contrast(x).enhance(factor),
        "brightness": lambda x: ImageEnhance.Brightness(x).enhance(factor),
    }[name]
    for picture, got in zip(pictures, result, strict=True):
        assert np.abs(got - np.asarray(reference(image.fromarray(picture)), np.float32)).max() <= 1


def test_test_time_views_are_fixed_and_start_with_the_plain_picture():
    x = tf.constant(random_pictures(2).astype(np.float32))
    views = a.views(x, shift=2).numpy()
    assert views.shape == (6, *x.shape)
    np.testing.assert_array_equal(views[0], x)
    np.testing.assert_array_equal(views[3], x[:, :, ::-1])
    np.testing.assert_array_equal(views[1][:, 2:, 2:], x[:, :-2, :-2])
    assert a.views(x, flip=False).shape[0] == 1
