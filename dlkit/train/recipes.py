"""Named recipes, each with its source and what it reaches."""

from dlkit.data.augment import Affine, Color, Flip
from dlkit.train.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    # the quickstart's: 1,437 digits, small shifts, rotations and scales; no flips, a flipped 6 is not a 9
    "digits": Recipe(epochs=24, batch=64, augment=(Affine(rotate=10, shift=0.08, scale=0.1),)),
    # small pictures of things that look the same in a mirror
    "small_images": Recipe(
        epochs=30,
        batch=64,
        label_smoothing=0.1,
        augment=(
            Flip(),
            Affine(rotate=10, shift=0.1, scale=0.1),
            Color(brightness=0.2, contrast=0.2, saturation=0.2),
        ),
    ),
}
