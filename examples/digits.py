"""Digits from data to a verified export.

python examples/digits.py            about a minute on two cores; test accuracy about 99 %
python examples/digits.py --smoke    one epoch
"""

import argparse
from dataclasses import replace

from dlkit.data import Preprocess, load
from dlkit.export import saved_model, verify
from dlkit.models import resnet_cifar
from dlkit.train import RECIPES, evaluate, fit


def main(smoke: bool, out: str) -> None:
    train, test = load("digits")
    preprocess = Preprocess(16, channels=1, mean=0.3, std=0.37)
    model = resnet_cifar(8, classes=len(train.classes), input_shape=preprocess.input_shape, activation="swish")
    recipe = replace(RECIPES["digits"], epochs=1 if smoke else RECIPES["digits"].epochs)
    fit(model, recipe, train, preprocess=preprocess, run_dir=f"{out}/runs/digits")
    print(evaluate(model, test, preprocess=preprocess))
    path = saved_model(model, preprocess, train.classes, f"{out}/saved_models/digits", verify_on=test)
    print(verify(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one epoch, to see that it runs")
    parser.add_argument("--out", default=".", help="folder for runs/ and saved_models/")
    arguments = parser.parse_args()
    main(arguments.smoke, arguments.out)
