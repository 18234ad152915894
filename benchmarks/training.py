"""Training speed: dlkit beside Keras with `fit` and PyTorch, interleaved, medians: `python benchmarks/training.py`.

    python benchmarks/training.py                  # both cases: ResNet-50 at 224, batch 16; ResNet-20 at 32, batch 128
    python benchmarks/training.py --case cifar     # one of them
    python benchmarks/training.py --parts          # dlkit's step without each part of what makes it fast
    python benchmarks/training.py --accuracy       # bfloat16 against float32: accuracy of the digits recipe, n seeds

Each contestant is a process of its own that builds its model, takes its first step (trace and compile) and then waits;
the parent lets one after the other run a few steps, in turns, so that a disturbance of the machine meets all. Keras'
contestant is its own network (keras.applications, or the same CIFAR network of Keras' layers) under `compile` and
`fit`; PyTorch's is the same network with channels_last in float32, in bfloat16 autocast, and in that after
`torch.compile` (an optional extra: left out without torch, the last without a C++ compiler). Pictures are random and
stay in memory: the input pipeline is measured by benchmarks/pipeline.py.
"""

import argparse
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "training.json"
CASES = {"imagenet": (16, 224, 1000), "cifar": (128, 32, 10)}  # batch, side, classes
TURN = 1.0  # seconds of a turn; at least one step
CONTESTANTS = ("dlkit", "dlkit_float32", "keras", "torch_float32", "torch_bfloat16", "torch_bfloat16_compiled")
PARTS = ("bfloat16", "fused_batch_norm", "products", "momentum_op")
TARGETS = {("imagenet", "keras"): 2.2, ("imagenet", "torch"): 1.1, ("cifar", "keras"): 1.8, ("cifar", "torch"): 1.2}


def leave_out(part: str) -> None:
    """Puts what a plain Keras program has in the place of one part, in this process."""
    import contextlib

    import keras

    from dlkit.layers import _fast, _plain
    from dlkit.train import _convolutions, optimizers

    if part == "fused_batch_norm":
        _fast.batch_norm_training = _plain.batch_norm_training
    elif part == "products":  # gradients of convolutions as matrix products
        _convolutions.fast_gradients = contextlib.nullcontext
    elif part == "momentum_op":
        optimizers.Momentum.update_step = keras.optimizers.SGD.update_step


# contestants: each returns a function that makes n steps and may say how many seconds they took ---------------------


def dlkit(case: str, precision: str) -> Callable[[int], None]:
    """The step that `dlkit.train.fit` traces."""
    import keras
    import tensorflow as tf

    import dlkit.models
    from dlkit.train import Recipe, averaging, optimizers
    from dlkit.train._step import Step
    from dlkit.train.precision import arithmetic

    model = dlkit.models.resnet50() if case == "imagenet" else dlkit.models.resnet_cifar(20)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    recipe = Recipe(optimizer="momentum", weight_decay=0.0)
    optimizer = optimizers.get("momentum", 0.1, model.trainable_variables)
    step = Step(model, optimizer, recipe, loss, averaging.Averaging(model), (), tf.distribute.get_strategy())
    x, y = data(case)
    x, y = tf.constant(x), tf.one_hot(y, CASES[case][2])

    def run(steps: int) -> None:
        with arithmetic(precision):
            for i in range(steps):
                float(step(x, y, i)[0])

    return run


def keras_fit(case: str) -> Callable[[int], float]:
    """keras.applications.ResNet50, or the CIFAR network of Keras' own layers, under compile and fit."""
    import keras
    import tensorflow as tf

    if case == "imagenet":
        model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    else:
        model = keras_cifar()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    x, y = data(case)
    endless = tf.data.Dataset.from_tensors((x, y)).cache().repeat()

    class Clock(keras.callbacks.Callback):  # what `fit` takes to begin and to end is not part of a step
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.ends: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

    def run(steps: int) -> float:
        clock, more = Clock(), model.train_function is not None  # the first step is traced, and timed from outside
        model.fit(endless, steps_per_epoch=steps + more, epochs=1, verbose=0, shuffle=False, callbacks=[clock])
        return clock.ends[-1] - clock.ends[0]

    return run


def keras_cifar() -> Any:
    """ResNet-20 for CIFAR-10 as a Keras user writes it."""
    import keras

    def unit(x: Any, filters: int, strides: int = 1, last: bool = False) -> Any:
        x = keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        return x if last else keras.layers.ReLU()(x)

    inputs = keras.Input((32, 32, 3))
    x = unit(inputs, 16)
    for filters in (16, 32, 64):
        for block in range(3):
            strides = 2 if filters > 16 and not block else 1
            y = unit(unit(x, filters, strides), filters, last=True)
            if strides == 2:
                x = keras.layers.AveragePooling2D(1, strides=2)(x)
                x = keras.layers.Concatenate()([x, keras.ops.zeros_like(x)])
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def torch_loop(case: str, half: bool, compiled: bool) -> Callable[[int], None]:
    """The same network in PyTorch, channels_last, a plain loop; `half` under bfloat16 autocast."""
    import torch

    model = torch_resnet50() if case == "imagenet" else torch_cifar()
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()
    if compiled:
        model = torch.compile(model)
    x, y = data(case)
    inputs = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(y)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                value = loss(model(inputs).float(), targets)
            value.backward()
            optimizer.step()
            value.item()

    return run


def torch_cifar() -> Any:
    """ResNet-20 with parameter-free shortcuts."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int):
            super().__init__()
            self.strides = filters // inputs
            self.conv1 = nn.Conv2d(inputs, filters, 3, self.strides, 1, bias=False)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if self.strides == 2:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
            return functional.relu(x + y)

    layers: list[Any] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, filters in ((16, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers.append(Block(inputs, filters))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def torch_resnet50() -> Any:
    """ResNet-50 with the stride in the first 1x1 convolution, as the paper and keras.applications have it."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, strides: int):
            super().__init__()
            wide = 4 * filters
            self.convs = nn.ModuleList([
                nn.Conv2d(inputs, filters, 1, strides, bias=False),
                nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
                nn.Conv2d(filters, wide, 1, bias=False),
            ])  # fmt: skip
            self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (filters, filters, wide)])
            self.short: Any = None
            if strides > 1 or inputs != wide:
                self.short = nn.Sequential(nn.Conv2d(inputs, wide, 1, strides, bias=False), nn.BatchNorm2d(wide))

        def forward(self, x: Any) -> Any:
            y = x
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                y = norm(conv(y))
                y = functional.relu(y) if i < 2 else y
            return functional.relu(y + (x if self.short is None else self.short(x)))

    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for filters, count, strides in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(count):
            layers.append(Block(inputs, filters, strides if not block else 1))
            inputs = 4 * filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def data(case: str) -> tuple[Any, Any]:
    """Returns one batch of random pictures and classes."""
    import numpy as np

    batch, side, classes = CASES[case]
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, side, side, 3)).astype("float32"), rng.integers(0, classes, batch)


# the race ----------------------------------------------------------------------------------------------------------


def contestant(case: str, name: str) -> None:
    """Runs as a child: "ready SECONDS" after the first step, then n steps for every n on standard input."""
    began = time.perf_counter()
    run: Callable[[int], float | None]
    if name in PARTS:
        leave_out(name)
        run = dlkit(case, "float32" if name == "bfloat16" else "auto")
    elif name.startswith("dlkit"):
        run = dlkit(case, "float32" if name.endswith("float32") else "auto")
    elif name == "keras":
        run = keras_fit(case)
    else:
        run = torch_loop(case, "bfloat16" in name, name.endswith("compiled"))
    built = time.perf_counter()
    run(1)
    print(f"ready {built - began} {time.perf_counter() - built}", flush=True)
    run(1)
    for line in sys.stdin:
        start = time.perf_counter()
        seconds = run(int(line))
        print(f"took {time.perf_counter() - start if seconds is None else seconds}", flush=True)


class Child:
    """A contestant's process."""

    def __init__(self, case: str, name: str):
        command = [sys.executable, __file__, "--contestant", case, name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.build, self.first = self._numbers("ready")

    def _numbers(self, word: str) -> list[float]:
        for line in self.process.stdout:  # type: ignore[union-attr]
            if line.startswith(word):
                return [float(number) for number in line.split()[1:]]
        raise SystemExit(f"{' '.join(self.process.args[1:])} failed; run it by hand")  # type: ignore[union-attr, arg-type]

    def steps(self, count: int) -> float:
        self.process.stdin.write(f"{count}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self._numbers("took")[0]

    def end(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(60)


def race(case: str, turns: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns images per second and seconds of the first step by contestant; medians of `turns` interleaved turns."""
    batch = CASES[case][0]
    children = {name: Child(case, name) for name in names}
    counts = {name: max(1, round(TURN / child.steps(1))) for name, child in children.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, child in children.items():
            seconds[name].append(child.steps(counts[name]) / counts[name])
    rows = {
        name: {
            "images_per_second": round(batch / statistics.median(seconds[name]), 2),
            "seconds_per_step": [round(value, 4) for value in seconds[name]],
            "build_seconds": round(child.build, 2),
            "first_step_seconds": round(child.first, 2),
        }
        for name, child in children.items()
    }
    for child in children.values():
        child.end()
    ours = statistics.median(seconds["dlkit"])
    for part in (name for name in names if name in PARTS):
        rows[part]["times_dlkit"] = round(statistics.median(seconds[part]) / ours, 3)
        print(f"{case}: without {part} a step takes {rows[part]['times_dlkit']:.2f} times as long", flush=True)
    torch = [name for name in names if "torch" in name]
    peers = {"keras": "keras" if "keras" in names else "",
             "torch": min(torch, default="", key=lambda n: statistics.median(seconds[n]))}  # fmt: skip
    for label, peer in peers.items():
        if peer:
            ratio = statistics.median(seconds[peer]) / ours
            rows["dlkit"][f"times_{peer}"] = round(ratio, 3)
            target = TARGETS[case, label]
            print(
                f"{case}: {ratio:.2f} times {peer}, target {target}: {'met' if ratio >= target else 'MISSED'}",
                flush=True,
            )
    for name, row in rows.items():
        print(
            f"  {name:24} {row['images_per_second']:9.2f} images/s, first step {row['first_step_seconds']:.1f} s",
            flush=True,
        )
    return {"batch": batch, "side": CASES[case][1], "turns": turns, "rows": rows}


def accuracy(seeds: int) -> dict[str, Any]:
    """Returns validation accuracies of the digits recipe in float32 and bfloat16, one per seed, interleaved."""
    import tempfile

    import keras

    import dlkit.data
    import dlkit.models
    import dlkit.train

    train, validation = dlkit.data.load("digits")
    preprocess = dlkit.data.Preprocess(8, channels=1)
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(seeds):
        for precision, values in found.items():
            keras.utils.set_random_seed(seed)
            model = dlkit.models.resnet_cifar(8, classes=10, input_shape=(8, 8, 1))
            recipe = dlkit.train.RECIPES["digits"].override({"seed": seed, "precision": precision, "epochs": 12})
            with tempfile.TemporaryDirectory() as folder:
                result = dlkit.train.fit(
                    model, recipe, train, validation, preprocess=preprocess, run_dir=Path(folder, "run"), verbose=False
                )
            values.append(result.metrics["accuracy"])
    difference = [b - a for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
    spread = statistics.stdev(difference) / seeds**0.5
    for name, values in found.items():
        print(f"{name}: mean {statistics.mean(values):.4f}, spread {statistics.stdev(values):.4f}, n {seeds}: {values}")
    print(f"bfloat16 - float32: {statistics.mean(difference):+.4f}, standard error {spread:.4f}")
    return {"task": "digits, resnet_cifar8, 12 epochs", "accuracy": found, "standard_error_of_difference": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: both")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--parts", action="store_true", help="dlkit's step without each part of it")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies instead of speeds")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--contestant", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, help="a subset of the contestants; dlkit is needed")
    arguments = parser.parse_args()
    if arguments.contestant:
        contestant(*arguments.contestant)
        return
    RESULTS.parent.mkdir(exist_ok=True)
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record["machine"] = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    if arguments.accuracy:
        record["accuracy"] = accuracy(arguments.seeds)
    else:
        names = ("dlkit", *PARTS) if arguments.parts else tuple(arguments.only or CONTESTANTS)
        if importlib.util.find_spec("torch") is None and not arguments.parts:
            names = tuple(name for name in names if "torch" not in name)
            print("PyTorch is not installed and is left out: pip install torch")
        elif shutil.which("c++") is None:
            names = tuple(name for name in names if not name.endswith("compiled"))
            print("there is no C++ compiler, which torch.compile needs: it is left out")
        for case in arguments.case or CASES:
            record[f"{case}_parts" if arguments.parts else case] = race(case, arguments.turns, names)
            RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
