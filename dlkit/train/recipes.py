"""Named recipes, each with its source and what it reaches; commands and results are in docs/training.md."""

from dlkit._errors import unknown
from dlkit.data.augment import Affine, Color, CutMix, Flip, MixUp, RandAugment, RandomCrop, RandomResizedCrop
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
    # K. Jordan, cifar10-airbench, 2024 (94 % in eight epochs of batch 2,000), for batches of 500: the same rate per
    # picture for biases, offsets and classifier, half the rate for orthogonalised kernels; smaller pictures in the
    # first two thirds, which pays for twelve epochs. For pictures of 32 pixels
    "cifar_fast": Recipe(
        epochs=12,
        batch=500,
        optimizer="muon",
        peak_lr=0.12,
        schedule="linear",
        warmup_epochs=0,
        momentum=0.6,
        weight_decay=0.056,
        label_smoothing=0.2,
        augment=(RandomCrop(2, fill="reflect"), Flip(mode="alternating")),
        lr_groups=(("bias", 221.0), ("norm", 221.0), ("fc/*", 0.0425)),
        sizes=((0.0, 24), (5 / 12, 28), (8 / 12, 32)),
        whiten=True,
    ),
    # He et al. 2016, section 4.2: 64,000 steps of 128 on 45,000 images, the rate divided by ten at 32,000 and 48,000.
    # Their L2 of 1e-4 lies inside the momentum; a decay of the weights themselves by 1e-4 / (1 - 0.9) is its equal
    # except in the ten steps after a change of the rate, and is what the logged run used
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
    # Krizhevsky et al. 2012, section 5: batch 128, momentum 0.9, decay 5e-4 inside the momentum, 90 passes, the rate
    # divided by ten three times when validation stalled: here halved ten times, to the same thousandth; section 4.1
    "alexnet": Recipe(
        epochs=90,
        batch=128,
        optimizer="momentum",
        peak_lr=0.01,
        schedule="factor",
        warmup_epochs=0,
        momentum=0.9,
        weight_decay=0.0,
        l2=5e-4,
        augment=(RandomResizedCrop(), Flip()),
    ),
    # Simonyan, Zisserman 2014, section 3.1: batch 256, momentum 0.9, L2 5e-4, 74 passes, three divisions by ten (here
    # ten by two)
    "vgg": Recipe(
        epochs=74,
        batch=256,
        optimizer="momentum",
        peak_lr=0.01,
        schedule="factor",
        warmup_epochs=0,
        momentum=0.9,
        weight_decay=0.0,
        l2=5e-4,
        augment=(RandomResizedCrop(), Flip()),
    ),
    # Goyal et al. 2017, section 5.1: 90 epochs of batch 256, 0.1, five epochs of warm-up, smoothing after Szegedy 2015;
    # a cosine in place of the steps (T. He et al. 2018, section 5.1)
    "resnet_imagenet": Recipe(
        epochs=90,
        batch=256,
        optimizer="nesterov",
        peak_lr=0.1,
        schedule="cosine",
        warmup_epochs=5,
        momentum=0.9,
        weight_decay=0.0,
        l2=1e-4,
        label_smoothing=0.1,
        augment=(RandomResizedCrop(), Flip()),
    ),
    # Wightman, Touvron, Jegou 2021, table 2, procedure A3: 100 epochs at 160 pixels, batch 2,048, LAMB 8e-3,
    # decay 0.02, binary cross-entropy, RandAugment 6, MixUp 0.1, CutMix 1.0; test at 224
    "resnet_strikes_back_a3": Recipe(
        epochs=100,
        batch=2048,
        optimizer="lamb",
        peak_lr=8e-3,
        schedule="cosine",
        warmup_epochs=5,
        weight_decay=0.02,
        loss="bce",
        augment=(RandomResizedCrop(), Flip(), RandAugment(magnitude=6), MixUp(0.1, 0.5), CutMix(1.0, 0.5)),
        sizes=((0.0, 160),),
    ),
    # a trained network on other pictures: a tenth of the rate, the first convolutions frozen, an average of the weights
    "finetune": Recipe(
        epochs=15,
        batch=32,
        optimizer="nesterov",
        peak_lr=0.01,
        schedule="cosine",
        warmup_epochs=1,
        weight_decay=1e-4,
        label_smoothing=0.1,
        ema=0.99,
        freeze=("conv1*",),
        augment=(RandomResizedCrop(scale=(0.25, 1.0)), Flip()),
    ),
}


def get(name: str) -> Recipe:
    """Returns a named recipe, or the one that a YAML or JSON file describes.

    Raises:
        InputError: an unknown name, with the nearest one; a file with unknown fields.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith((".yaml", ".yml", ".json")):
        return Recipe.from_file(name)
    raise unknown("recipe", name, RECIPES)
