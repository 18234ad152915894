"""Times exports of one network against other exports and runtimes, and writes benchmarks/results/serving.json.

    python benchmarks/serving.py                                   ResNet-50; other names of `dlkit models` by --model
    python benchmarks/serving.py --model resnet_cifar20 --side 32 --classes 10
    python benchmarks/serving.py --run RUN --data FOLDER           accuracy lost by bfloat16 and int8 on labelled images

`--folder FOLDER --stage write` exports only and keeps the files; `--stage measure` times what is there. Every round
starts one fresh process per variant, in turns, which loads the export with its runtime alone and answers preprocessed
tensors; the figures are medians over the rounds. "first answer" counts from the start of the process, which imports
TensorFlow without Keras (no export needs it); "with Keras" is the same where it is imported too, as `import tensorflow`
does where Keras is installed. Memory is the peak resident size of the process after batch 1. "of the rate" is the
arithmetic of the export (two operations for each multiply-add) in one second, as a share of what TensorFlow's product
of two float32 matrices of 4,096 x 4,096 reaches on the same threads: what no convolution in float32 exceeds by much.
"round trip" is the time that one byte takes to a process that waits for it and back: two wake-ups of a sleeping thread.

Peers: `model.export()` is Keras' export of the same network; `keras.applications` that of the network of the same name
with Keras' own layers, left out where there is none. "ONNX Runtime, Keras' file" is Keras' own ONNX export of the last
of these. ONNX Runtime, OpenVINO and LiteRT read dlkit's conversions. All run in float32 (int8 where named) and on two
threads but for the last rows. Frozen exports and Keras' ONNX file are left out where they would take more than 10 and
17 GB of memory.
"""

import argparse
import importlib.util
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
RUNTIMES = Path(__file__).parents[1] / "dlkit" / "export" / "_runtimes.py"
PEERS = {"resnet50": "ResNet50", "vgg16": "VGG16"}
BATCHES = {1: 45, 16: 7, 32: 5}  # rows: repetitions, and more until half a second is over
SAVED_MODELS = {
    "dlkit None": {"optimize": None},
    "dlkit fold": {"optimize": "fold"},
    "dlkit freeze": {"optimize": "freeze"},
    "dlkit fold bfloat16": {"optimize": "fold", "precision": "bfloat16"},
    "dlkit freeze bfloat16": {"optimize": "freeze", "precision": "bfloat16"},
}
# Variables of the environment that TensorFlow reads: weights are constants, which it prepares once; one request's
# operations run one after the other on the thread that asked, which then shares the work of each; nothing is shared
FROZEN = {"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"}
CALLER = {"TF_NUM_INTEROP_THREADS": "1", "TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD": "1"}
ALONE = {"TF_NUM_INTRAOP_THREADS": "1"}
HELD_AS_VARIABLES = ("model.export()", "dlkit fold", "dlkit fold bfloat16")
ENVIRONMENTS = {
    "weights assumed frozen": (FROZEN, HELD_AS_VARIABLES),
    "the caller's thread works": (CALLER, ("model.export()", "keras.applications", "dlkit freeze")),
    "both": (FROZEN | CALLER, HELD_AS_VARIABLES),
    "one thread for each operation": (ALONE, ("model.export()", "dlkit fold", "dlkit freeze", "ONNX Runtime")),
}
KERAS_ONNX = "ONNX Runtime, Keras' file"
SQUARE = 4096  # rows and columns of the matrices whose product shows the machine's rate
LARGEST = 400e6  # bytes of weights: a frozen graph takes 25 times as much to load, Keras' ONNX export 44 to write


def samples(side, classes, count=64):
    """Returns a Source of generated pictures."""
    import numpy as np

    from dlkit.data import from_arrays

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (count, side, side, 3), np.uint8)
    return from_arrays(pixels, np.arange(count) % classes, classes=[f"class {i}" for i in range(classes)])


def fits(model):
    """Tells whether the weights are few enough for a frozen graph and for Keras' ONNX export."""
    return 4 * model.count_params() <= LARGEST


def variants(model, preprocess, labels, train, wanted):
    """Yields (name, function that exports into a folder) of dlkit's own forms."""
    from dlkit import export

    for name, given in SAVED_MODELS.items():
        if "freeze" not in name or fits(model):
            yield name, lambda f, given=given: export.saved_model(model, preprocess, labels, f, **given)
    yield "ONNX Runtime", lambda f: export.onnx(model, preprocess, labels, f)
    yield "OpenVINO", lambda f: export.openvino(model, preprocess, labels, f)
    if "litert" in wanted:
        yield "LiteRT", lambda f: export.litert(model, preprocess, labels, f)
        yield "LiteRT int8", lambda f: export.litert(model, preprocess, labels, f, quantize="int8", samples=train)


def as_trained(model):
    """Gives a new model the statistics of a trained one: a runtime may leave out an offset of zero."""
    import numpy as np

    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.0, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))


def write(folder, name, side, classes, wanted):
    """Writes every variant of the network below `folder` and notes its seconds and bytes there."""
    import keras

    from dlkit import models
    from dlkit.data import Preprocess

    model = models.create(name, classes=classes, input_shape=(side, side, 3))
    peers = {"model.export()": model}
    if name in PEERS and side == 224 and classes == 1000:
        peers["keras.applications"] = getattr(keras.applications, PEERS[name])(weights=None, classifier_activation=None)
    for network in peers.values():
        as_trained(network)
    weight = model.layers[-1].weights or model.layers[-2].weights
    weight[0].assign(0.02 * weight[0])  # logits as large as a trained network's
    train = samples(side, classes)
    chosen = dict(variants(model, Preprocess(side), list(train.classes), train, wanted))
    table = {}
    products = models.describe(model).multiply_adds
    last = list(peers.values())[-1]
    for variant in (*peers, *([KERAS_ONNX] if fits(last) else []), *chosen):
        started, rewrites = time.monotonic(), {}
        if variant in chosen:
            chosen[variant](folder / variant).rename(folder / variant / "export")
            rewrites = json.loads((folder / variant / "export" / "manifest.json").read_text())["rewrites"]
        elif variant == KERAS_ONNX:
            (folder / variant / "export").mkdir(parents=True)
            last.export(folder / variant / "export" / "model.onnx", format="onnx", verbose=False)
        else:
            peers[variant].export(folder / variant / "export", verbose=False)
        size = sum(f.stat().st_size for f in (folder / variant / "export").rglob("*") if f.is_file())
        table[variant] = {
            "export_s": time.monotonic() - started,
            "megabytes": size / 1e6,
            "multiply_adds": rewrites.get("multiply_adds_after", products),
        }
        (folder / "table.json").write_text(json.dumps(table))
        print(f"{variant:24} {table[variant]['export_s']:6.1f} s", flush=True)


def peak_kb():
    """Peak resident size of this program alone; `ru_maxrss` would start at that of the process that forked it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def loaded(path, keras=True):
    """Returns a function from a batch to logits, with no more imports than the form needs."""
    form = {"model.onnx": "onnx", "model.xml": "openvino", "model.tflite": "litert"}
    found = next((form[name] for name in form if (path / name).is_file()), None)
    if found:
        spec = importlib.util.spec_from_file_location("runtimes", RUNTIMES)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        runtime = module.Runtime(found, path, threads=int(os.environ.get("TF_NUM_INTRAOP_THREADS", os.cpu_count())))
        logits = "logits" if "logits" in runtime.outputs else next(iter(runtime.outputs))  # Keras' file has one output
        return lambda x: runtime(x)[logits]
    if not keras:
        sys.modules["keras"] = None  # TensorFlow then takes it for missing
    import tensorflow as tf

    model = tf.saved_model.load(str(path))
    if "tensors" in model.signatures:
        call = model.signatures["tensors"]
        return lambda x: call(tensors=tf.constant(x))["logits"].numpy()
    return lambda x: model.serve(tf.constant(x)).numpy()


def measure(path, side, started, keras):
    """Loads one export and prints its figures; runs in a process of its own."""
    import numpy as np

    answer = loaded(Path(path), keras)
    figures = {}
    for rows, repetitions in BATCHES.items():
        x = np.random.default_rng(0).normal(size=(rows, side, side, 3)).astype(np.float32)
        answer(x)
        if rows == 1:
            figures["first_answer_s"] = time.time() - started
            if keras:
                break
        times, end = [], time.perf_counter() + 0.5
        while len(times) < repetitions or time.perf_counter() < end:
            before = time.perf_counter()
            answer(x)
            times.append(1000 * (time.perf_counter() - before))
        figures[f"batch_{rows}_ms"] = statistics.median(times)
        figures[f"memory_{rows}_mb"] = peak_kb() / 1024
    print(json.dumps(figures))


def round_trip():
    """Returns the median seconds in which one byte goes to another process, waiting in `read`, and comes back."""
    (question, ask), (reply, answer) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        while os.read(question, 1) == b"?":
            os.write(answer, b"!")
        os._exit(0)
    times = []
    for _ in range(2000):
        before = time.perf_counter()
        os.write(ask, b"?")
        os.read(reply, 1)
        times.append(time.perf_counter() - before)
    os.write(ask, b".")
    os.waitpid(child, 0)
    return statistics.median(times)


def machine():
    """Prints a round trip and the operations per second of a product of two large matrices; runs in a process alone."""
    there_and_back = round_trip()  # before TensorFlow has threads
    sys.modules["keras"] = None
    import tensorflow as tf

    x = tf.ones((SQUARE, SQUARE))
    product = tf.function(lambda: tf.matmul(x, x)[0, 0])
    times = []
    for _ in range(8):
        before = time.perf_counter()
        product().numpy()
        times.append(time.perf_counter() - before)
    print(json.dumps([2 * SQUARE**3 / statistics.median(times[1:]), there_and_back]))


def in_process(path, side, *more, environment=None):
    """Returns the figures of one export, measured in a fresh process."""
    return asked("--measure", str(path), "--side", str(side), *more, "--started", str(time.time()), **environment or {})


def asked(*options, **environment):
    """Returns what this program answers to the options in a fresh process."""
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(options)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(folder, side, rounds):
    """Returns the table with the medians of `rounds` interleaved rounds, the machine's rate and its round trip."""
    table = json.loads((folder / "table.json").read_text())
    ways = {peer: (peer, {}) for peer in table} | {
        f"{peer}, {words}": (peer, environment)
        for words, (environment, peers) in ENVIRONMENTS.items()
        for peer in peers
        if peer in table
    }
    found = {name: [] for name in ways}
    machines = []
    for _ in range(rounds):
        machines.append(asked("--machine"))
        for name, (peer, environment) in ways.items():
            export = folder / peer / "export"
            found[name].append(in_process(export, side, environment=environment))
            if not environment and (export / "saved_model.pb").is_file():
                with_keras = in_process(export, side, "--keras")
                found[name][-1]["first_answer_with_keras_s"] = with_keras["first_answer_s"]
    rows = {
        name: table[peer] | {key: statistics.median(row[key] for row in found[name]) for key in found[name][0]}
        for name, (peer, _) in ways.items()
    }
    rate, there_and_back = map(statistics.median, zip(*machines, strict=True))
    return rows, rate, there_and_back


def show(table, rate, there_and_back):
    bases = [peer for peer in ("model.export()", "keras.applications") if peer in table]
    print(
        f"{'':44} export s    MB  first s  (Keras)   1, 16, 32 rows, ms   memory MB  of the rate     times "
        + ", ".join(bases)
    )
    for peer, row in table.items():
        ratios = [" ".join(f"{table[b][f'batch_{n}_ms'] / row[f'batch_{n}_ms']:.2f}" for n in BATCHES) for b in bases]
        times = " ".join(f"{row[f'batch_{n}_ms']:7.1f}" for n in BATCHES)
        shares = " ".join(f"{2000 * row['multiply_adds'] * n / row[f'batch_{n}_ms'] / rate:.2f}" for n in BATCHES)
        print(
            f"{peer:44} {row['export_s']:8.1f} {row['megabytes']:5.0f} {row['first_answer_s']:8.2f} "
            f"{row.get('first_answer_with_keras_s', 0):8.2f} "
            f"{times} {row['memory_1_mb']:10.0f}  {shares}  {', '.join(ratios)}"
        )
    counts = ", ".join(f"{2 * n / 1e9:.2f}" for n in sorted({row["multiply_adds"] for row in table.values()}))
    print(f"the rate: {rate / 1e9:.0f} billion operations a second; one row takes {counts} billion")
    print(f"a round trip between two processes: {1e6 * there_and_back:.0f} us")


def accuracy(run, data, count):
    """Returns the accuracy of each precision of a run's network on a folder of labelled images."""
    import numpy as np

    from dlkit.data import eval_pipeline, from_folder
    from dlkit.train import load_run

    held = load_run(run)
    test = from_folder(Path(data) / "test")
    train = from_folder(Path(data) / "train")
    if count:
        test = test.subset(np.linspace(0, len(test) - 1, count).round().astype(int))
    batches = [batch.numpy() for batch, _ in eval_pipeline(test, held.preprocess, 100)]
    targets = np.asarray(test.labels)
    parts = np.split(targets, np.cumsum([len(batch) for batch in batches])[:-1])
    made = dict(variants(held.model, held.preprocess, list(held.classes), train, ("litert",)))
    table = {}
    for name in ("dlkit fold", "dlkit fold bfloat16", "LiteRT", "LiteRT int8"):
        with tempfile.TemporaryDirectory() as folder:
            path = made[name](Path(folder) / "net")
            answer = loaded(path)
            right = 0
            for batch, labels in zip(batches, parts, strict=True):
                right += int(np.sum(answer(batch).argmax(-1) == labels))
            size = sum(f.stat().st_size for f in path.rglob("*") if f.name.startswith(("variables.data", "model.tfl")))
        table[name] = {"accuracy": right / len(targets), "images": len(targets), "weights_bytes": size}
        print(f"{name:24} {100 * right / len(targets):6.2f} %  {size:,} bytes of weights", flush=True)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--forms", default="litert", help="'' leaves LiteRT out")
    parser.add_argument("--folder", type=Path, help="keeps the exports")
    parser.add_argument("--stage", choices=("write", "measure", "both"), default="both")
    parser.add_argument("--run", help="a run directory, for the accuracy")
    parser.add_argument("--data", help="a folder with train/ and test/, one subfolder per class")
    parser.add_argument("--images", type=int, default=0, help="of test/, 0 takes all")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--machine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--keras", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.side, given.started, given.keras)
        return
    if given.machine:
        machine()
        return
    if given.run:
        keep(f"accuracy of {Path(given.run).name}", {"table": accuracy(given.run, given.data, given.images)})
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="dlkit-serving-"))
    try:
        if given.stage != "measure":
            write(folder, given.model, given.side, given.classes, given.forms)
        if given.stage != "write":
            table, rate, there_and_back = timed(folder, given.side, given.rounds)
            show(table, rate, there_and_back)
            found = {"rounds": given.rounds, "matmul_per_s": rate, "round_trip_s": there_and_back, "table": table}
            keep(given.model, found)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def keep(name, result):
    """Adds a result to the file of all results."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[name] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", **result}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
