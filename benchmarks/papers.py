"""The papers' own CIFAR-10 results with dlkit's recipes: `python benchmarks/papers.py resnet_cifar20 --data FOLDER`.

    python benchmarks/papers.py alexnet --width 0.5 --data FOLDER \\
        --set epochs=15 --set schedule=one_cycle --set peak_lr=0.02
    python benchmarks/papers.py vgg11_bn --width 0.5 --data FOLDER \\
        --set epochs=15 --set schedule=one_cycle --set peak_lr=0.05

FOLDER holds `train/` and `test/` with a subfolder per class. A tenth of the training images is kept for validation, as
in the ResNet paper; the test images are looked at once, at the end. A killed run continues where it was.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import keras

import dlkit.data
import dlkit.models
import dlkit.train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name of dlkit.models.names(), built for 32x32 and ten classes")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--width", type=float, default=1.0, help="factor on every channel and unit count")
    parser.add_argument("--recipe", default="resnet_cifar")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    settings = dict(item.split("=", 1) for item in arguments.set) | {"seed": str(arguments.seed)}
    recipe = dlkit.train.RECIPES[arguments.recipe].override(settings)
    keras.utils.set_random_seed(arguments.seed)
    options = {"width": arguments.width}
    if arguments.model.startswith(("vgg", "alexnet")):
        options["stem"] = "cifar"  # sized for 32x32
    model = dlkit.models.create(arguments.model, classes=10, input_shape=(32, 32, 3), **options)
    preprocess = dlkit.data.Preprocess(32)
    parts = dlkit.data.from_folder(arguments.data / "train").split(0.9, 0.1, seed=0)
    train, validation = (part.cached("decoded", preprocess=preprocess) for part in parts)
    run_dir = arguments.run_dir or Path("runs", f"paper-{arguments.model}-{arguments.seed}")
    began = time.time()
    result = dlkit.train.fit(model, recipe, train, validation, preprocess=preprocess, run_dir=run_dir)
    test = dlkit.train.evaluate(model, dlkit.data.from_folder(arguments.data / "test"), preprocess=preprocess)
    record = {
        "model": arguments.model,
        "width": arguments.width,
        "parameters": model.count_params(),
        "recipe": recipe.to_dict(),
        "seed": arguments.seed,
        "test": test,
        "validation": result.metrics,
        "seconds": result.seconds,
        "seconds_of_this_process": time.time() - began,
        "machine": platform.processor() or platform.machine(),
        "history": result.history,
    }
    path = arguments.out / f"paper_{arguments.model}_{arguments.seed}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"{arguments.model}: test accuracy {test['accuracy']:.4f}; {path}")


if __name__ == "__main__":
    try:
        main()
    except dlkit.train.Interrupted as stopped:
        raise SystemExit(str(stopped)) from None
