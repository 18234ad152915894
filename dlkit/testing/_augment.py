"""The contract that every augmentation passes."""

import dataclasses

import numpy as np
import tensorflow as tf

from dlkit.data.augment import Augmentation, Chain
from dlkit.data.augment.mix import Mix


def check_augmentation(
    op: Augmentation, *, identity: Augmentation | None = None, size: tuple[int, int] = (12, 10)
) -> None:
    """Checks one augmentation: a frozen value whose pixels are a function of its draws alone.

    - frozen, hashable, equal to a copy of itself;
    - float32 pictures of the same shape with grey levels 0..255, from uint8 with 1, 3 and 4 channels;
    - the same pixels eagerly, in `tf.data` at any parallelism, and in batches of 1, 3 and 8;
    - other draws, other pixels; zero strength is the exact identity; boxes stay inside the picture.

    Args:
        op: the operation.
        identity: the same operation with zero strength, or None where none exists.
        size: height and width of the pictures.

    Raises:
        AssertionError: with what was expected.

    >>> from dlkit.data.augment import Flip
    >>> check_augmentation(Flip(0.5), identity=Flip(0.0))
    """
    _check_value(op)
    if isinstance(op, Mix):
        _check_mix(op, size)
        return
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *size, 3), dtype=np.uint8)
    chain = Chain([op])
    draws = rng.random((8, chain.width), np.float32)
    expected = _check_pixels(chain, images, draws)
    if identity is not None:
        _check_identity(identity, images, draws)
    _check_draws_matter(chain, images, expected, rng)
    for channels in (1, 4):
        other = chain(np.resize(images, (8, *size, channels)), draws)[0]
        assert other.shape == (8, *size, channels), f"{op}: {channels} channels became {other.shape}"
    boxes = rng.random((8, 2), np.float32) / 2
    boxes = np.concatenate([boxes, np.full((8, 2), 0.4, np.float32)], 1)
    moved = chain(images, draws, boxes=tf.constant(boxes))[1].numpy()
    assert (moved >= 0).all(), f"{op}: a box left the picture: {moved}"
    assert (moved[:, :2] + moved[:, 2:] <= 1 + 1e-6).all(), f"{op}: a box left the picture: {moved}"


def _check_value(op: Augmentation) -> None:
    assert dataclasses.is_dataclass(op), f"{op!r} is no dataclass"
    assert op == dataclasses.replace(op), f"{op!r} does not equal its own copy"
    assert hash(op) == hash(dataclasses.replace(op)), f"{op!r} hashes unlike its own copy"
    assert isinstance(op.draws, int), f"{op!r}: draws is {op.draws!r}, not a number of columns"
    try:
        op.draws = 0  # type: ignore[misc]
    except AttributeError:
        return
    raise AssertionError(f"{op!r} can be changed after it was made: use @dataclasses.dataclass(frozen=True)")


def _check_pixels(chain: Chain, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    expected = chain(images, draws)[0].numpy()
    assert expected.dtype == np.float32, f"pictures became {expected.dtype}"
    assert expected.shape == images.shape, f"shape {images.shape} became {expected.shape}"
    assert expected.min() >= 0, "grey levels below 0"
    assert expected.max() <= 255, "grey levels above 255"
    for batch in (1, 3):
        part = chain(images[:batch], draws[:batch])[0].numpy()
        assert (part == expected[:batch]).all(), f"a batch of {batch} gives other pixels than a batch of 8"
    for calls in (1, 4):
        dataset = tf.data.Dataset.from_tensor_slices((images[None], draws[None])).repeat(3)
        for result in dataset.map(lambda x, u: chain(x, u)[0], num_parallel_calls=calls).as_numpy_iterator():
            assert (result == expected).all(), f"tf.data with {calls} calls gives other pixels than eager execution"
    return expected


def _check_identity(identity: Augmentation, images: np.ndarray, draws: np.ndarray) -> None:
    result = Chain([identity])(images, draws)[0].numpy()
    assert (result == images).all(), f"{identity!r} changes pixels by up to {np.abs(result - images).max()}"


def _check_draws_matter(chain: Chain, images: np.ndarray, expected: np.ndarray, rng: np.random.Generator) -> None:
    other = chain(images, rng.random((8, chain.width), np.float32))[0].numpy()
    assert (other != expected).any(), "other draws give the same pixels: the operation does nothing, or ignores them"


def _check_mix(op: Mix, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((16, *size, 3), np.float32)
    partners = rng.random((16, *size, 3), np.float32)
    draws = rng.random((16, max(4, op.draws)), np.float32)
    result, share = (value.numpy() for value in op.mixed(images, partners, tf.constant(draws)))
    assert result.shape == images.shape, f"shape {images.shape} became {result.shape}"
    assert ((share >= 0) & (share <= 1)).all(), f"shares outside 0..1: {share}"
    low, high = np.minimum(images, partners), np.maximum(images, partners)
    assert (result >= low - 1e-6).all(), "values below both pictures"
    assert (result <= high + 1e-6).all(), "values above both pictures"
    for batch in (1, 5):
        part = op.mixed(images[:batch], partners[:batch], tf.constant(draws[:batch]))[0].numpy()
        assert (part == result[:batch]).all(), f"a batch of {batch} gives other pixels than a batch of 16"
