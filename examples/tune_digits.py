"""A search over a builder's arguments and a recipe's fields; promoted trials continue where they stopped.

python examples/tune_digits.py            81 epochs in all, about two minutes on two cores
python examples/tune_digits.py --smoke    6 epochs in all
"""

import argparse
from dataclasses import replace

from dlkit.data import Preprocess, load
from dlkit.models import resnet_cifar
from dlkit.report import write_search
from dlkit.train import RECIPES
from dlkit.tune import search


def space(hp):
    return {
        "model": {
            "norm": hp.Choice("norm", ["batch", "group"]),
            "activation": hp.Choice("activation", ["relu", "swish"]),
        },
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.01, 0.5, sampling="log"),
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log"),
        },
    }


def main(smoke: bool, out: str) -> None:
    train, _ = load("digits")
    part, validation = train.split(0.85, 0.15)
    preprocess = Preprocess(16, channels=1, mean=0.3, std=0.37)

    def build(**overrides):
        return resnet_cifar(8, classes=10, input_shape=preprocess.input_shape, width=0.5, **overrides)

    found = search(
        build, space, replace(RECIPES["digits"], epochs=3 if smoke else 9), part, validation, preprocess=preprocess,
        epochs_budget=6 if smoke else 81, directory=f"{out}/runs/tune-digits",
    )  # fmt: skip
    for trial in found.trials[:5]:
        print(trial.id, trial.epochs, trial.score, trial.values)
    print("best run:", found.best.run_dir)
    print("report:", write_search(found.directory))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny budget, to see that it runs")
    parser.add_argument("--out", default=".", help="folder for runs/")
    arguments = parser.parse_args()
    main(arguments.smoke, arguments.out)
