"""Named recipes, each with its source and what it reaches."""

from dlkit.data.augment import Affine, Color, Flip, RandomCrop
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
    # He et al. 2016, section 4.2: 64,000 steps of 128 on 45,000 images, the rate divided by ten at 32,000 and 48,000.
    # Their L2 of 1e-4 lies inside the momentum; a decay of the weights themselves is its equal at 1e-4 / (1 - 0.9)
    "resnet_cifar": Recipe(
        epochs=182,
        batch=128,
        optimizer="momentum",
        peak_lr=0.1,
        schedule="piecewise",
        momentum=0.9,
        weight_decay=1e-3,
        augment=(RandomCrop(4), Flip()),
    ),
}
