"""Times exports of one network against `model.export()`, and writes benchmarks/results/serving.json.

    python benchmarks/serving.py                       ResNet-50, about four minutes on two cores
    python benchmarks/serving.py --model vgg16         any name of `dlkit models`; --side and --classes as it needs

Every round starts one fresh process per variant, in turns, which loads the export with TensorFlow alone and answers
preprocessed tensors; the figures are medians over the rounds. "first answer" counts from the start of the process.
Memory is the peak resident size of that process after batch 1, and after batch 32. `keras.applications` is the network
of the same name with Keras' own layers, exported by `model.export()`; it is left out where there is none.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
RESULTS = Path(__file__).parent / "results" / "serving.json"
PEERS = {"resnet50": "ResNet50", "vgg16": "VGG16"}
BATCHES = {1: 15, 32: 3}  # rows: repetitions


def write(folder, name, side, classes):
    """Writes every variant of the network below `folder` and returns their seconds and bytes."""
    import keras
    import numpy as np

    from dlkit import models
    from dlkit.data import Preprocess
    from dlkit.export import saved_model

    rng = np.random.default_rng(0)
    model = models.create(name, classes=classes, input_shape=(side, side, 3))
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.0, weight.shape))
    labels = [f"class {i}" for i in range(classes)]
    made = {}
    for optimize in (None, "fold", "freeze"):
        started = time.monotonic()
        path = saved_model(model, Preprocess(side), labels, folder / f"dlkit {optimize}", optimize=optimize)
        path.rename(folder / f"dlkit {optimize}" / "export")
        made[f"dlkit {optimize}"] = time.monotonic() - started
    peers = {"model.export()": model}
    if name in PEERS and side == 224 and classes == 1000:
        peers["keras.applications"] = getattr(keras.applications, PEERS[name])(weights=None, classifier_activation=None)
    for peer, network in peers.items():
        started = time.monotonic()
        network.export(folder / peer / "export", verbose=False)
        made[peer] = time.monotonic() - started
    size = {peer: sum(f.stat().st_size for f in (folder / peer).rglob("*") if f.is_file()) for peer in made}
    return {peer: {"export_s": seconds, "megabytes": size[peer] / 1e6} for peer, seconds in made.items()}


def peak_kb():
    """Peak resident size of this program alone; `ru_maxrss` would start at that of the process that forked it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(path, side, started):
    """Loads one export and prints its figures; runs in a process of its own."""
    import numpy as np
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    ours = "tensors" in loaded.signatures
    call = loaded.signatures["tensors"] if ours else loaded.serve
    figures = {}
    for rows, repetitions in BATCHES.items():
        x = tf.constant(np.random.default_rng(0).normal(size=(rows, side, side, 3)), tf.float32)

        def answer(x=x):
            return call(tensors=x)["logits"].numpy() if ours else call(x).numpy()

        answer()
        if rows == 1:
            figures["first_answer_s"] = time.time() - started
        times = []
        for _ in range(repetitions):
            before = time.perf_counter()
            answer()
            times.append(1000 * (time.perf_counter() - before))
        figures[f"batch_{rows}_ms"] = statistics.median(times)
        figures[f"memory_{rows}_mb"] = peak_kb() / 1024
    print(json.dumps(figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.side, given.started)
        return
    folder = Path(tempfile.mkdtemp(prefix="dlkit-serving-"))
    try:
        table = write(folder, given.model, given.side, given.classes)
        rounds = {peer: [] for peer in table}
        for _ in range(given.rounds):
            for peer, found in rounds.items():
                command = [
                    sys.executable,
                    __file__,
                    "--measure",
                    str(folder / peer / "export"),
                    "--side",
                    str(given.side),
                ]
                done = subprocess.run(
                    [*command, "--started", str(time.time())], capture_output=True, text=True, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for peer, found in rounds.items():
        table[peer] |= {key: statistics.median(row[key] for row in found) for key in found[0]}
    base = table["model.export()"]
    print(f"{'':20} export s    MB  first s  batch 1 ms  batch 32 ms  memory MB  x model.export()")
    for peer, row in table.items():
        ratio = " ".join(f"{base[f'batch_{rows}_ms'] / row[f'batch_{rows}_ms']:.2f}" for rows in BATCHES)
        print(
            f"{peer:20} {row['export_s']:8.1f} {row['megabytes']:5.0f} {row['first_answer_s']:8.2f} "
            f"{row['batch_1_ms']:11.1f} {row['batch_32_ms']:12.1f} {row['memory_1_mb']:10.0f}  {ratio}"
        )
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[given.model] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rounds": given.rounds,
        "table": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
