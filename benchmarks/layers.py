"""Times dlkit's layers against Keras' own on TensorFlow's CPU backend, and writes benchmarks/results/layers.json.

    python benchmarks/layers.py                    the whole grid, about ten minutes on two cores
    python benchmarks/layers.py --dtype float32    one half of it; --layer GroupNorm one layer; --quick few repeats
    python benchmarks/layers.py --part memory      the memory alone
    python benchmarks/layers.py --part torch       PyTorch's native group_norm against dlkit's (needs torch)
    python benchmarks/layers.py --part machine     what a call and one reading and writing of a tensor take here

Each cell interleaves dlkit, Keras and the same Keras function once more, call by call in rotating order, and takes the
median of the wall-clock times. Keras against itself says what the clock can tell apart: a cell is called slower if its
ratio lies below the band that holds 95 % of those ratios around 1 in the same mode. `forward` and
`forward+backward` call `layer(x)` (BatchNorm with training=True) inside a tf.function; `inference` calls it with
training=False, the form that exports have. Unknown batch means a tf.function traced for (None, ...). Compile time is
the first call less the median. Memory is the growth of the process' peak resident size per layer of a chain, with
gradients, each chain in a process of its own, in a tf.function and eagerly. Beside it stands, for each norm, what
automatic differentiation carries from the forward to the backward graph, counted from the graphs themselves.
"""

import argparse
import functools
import json
import operator
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import dlkit
from dlkit import layers

SHAPES = ((32, 56, 56, 64), (32, 14, 14, 256), (128, 32, 32, 32), (8, 112, 112, 48), (32, 196, 768))
DTYPES = ("float32", "bfloat16")
MODES = ("forward", "forward+backward", "inference")
# layers pooled in one target, the modes it holds for, times faster than Keras as a geometric mean
TARGETS = (
    (("GroupNorm", "InstanceNorm"), ("forward", "forward+backward"), 4.0),
    (("LayerNorm",), ("forward", "forward+backward"), 2.5),
    (("RMSNorm",), ("forward", "forward+backward"), 1.7),
    (("BatchNorm",), ("forward", "forward+backward"), 3.0),
    (("SwiGLU",), ("forward", "forward+backward"), 1.0),
    (("GELU",), ("forward", "forward+backward"), 1.0),
)
RESULTS = Path(__file__).parent / "results" / "layers.json"


def groups_of(channels):
    """Returns 32, GroupNorm's default, or the largest power of two that divides fewer channels."""
    return next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)


def pair(name, channels, policy):
    """Returns (dlkit's layer, Keras' counterpart)."""
    keras_layers = keras.layers
    if name == "SwiGLU":
        return layers.SwiGLU(channels, dtype=policy), TwoDense(channels, dtype=policy)
    if name == "GELU":
        return layers.activation("gelu", dtype=policy), keras_layers.Activation("gelu", dtype=policy)
    ours, theirs = {
        "GroupNorm": (
            lambda **k: layers.GroupNorm(groups_of(channels), **k),
            lambda **k: keras_layers.GroupNormalization(groups_of(channels), **k),
        ),
        "InstanceNorm": (layers.InstanceNorm, lambda **k: keras_layers.GroupNormalization(-1, **k)),
        "LayerNorm": (layers.LayerNorm, keras_layers.LayerNormalization),
        "RMSNorm": (layers.RMSNorm, keras_layers.RMSNormalization),
        "BatchNorm": (layers.BatchNorm, keras_layers.BatchNormalization),
    }[name]
    epsilon = 1e-6 if name == "RMSNorm" else 1e-5
    return ours(epsilon=epsilon, dtype=policy), theirs(epsilon=epsilon, dtype=policy)


class TwoDense(keras.layers.Layer):
    """Two Dense layers, a SiLU and a multiply: what SwiGLU must not be slower than."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.gate = keras.layers.Dense(units, activation="silu", dtype=self.dtype_policy)
        self.value = keras.layers.Dense(units, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.gate.build(input_shape)
        self.value.build(input_shape)

    def call(self, inputs):
        return self.gate(inputs) * self.value(inputs)


def function_of(layer, mode, spec):
    """Returns a tf.function of (x, dy) that runs the layer in `mode`."""
    batch_norm = isinstance(layer, (layers.BatchNorm, keras.layers.BatchNormalization))
    training = {"training": True} if batch_norm and mode != "inference" else {}
    if mode == "inference":
        training = {"training": False}

    @tf.function(input_signature=[spec, spec], autograph=False)
    def run(x, dy):
        if mode != "forward+backward":
            return layer(x, **training)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training)
        return tape.gradient(y, [x, *layer.trainable_variables], dy)

    return run


def interleaved(calls, repeats):
    """Returns the median seconds of each call; they take turns, each turn begun by another one."""
    times = [[] for _ in calls]
    for turn in range(repeats):
        for i in range(len(calls)):
            which = (turn + i) % len(calls)
            start = time.perf_counter()
            calls[which]()
            times[which].append(time.perf_counter() - start)
    return [float(np.median(t)) for t in times]


def measure(name, shape, dtype, unknown, mode, repeats):
    """Returns the cell: medians in milliseconds, compile times in seconds."""
    policy = "float32" if dtype == "float32" else "mixed_bfloat16"
    x, dy = (tf.cast(tf.random.stateless_normal(shape, (0, i)), dtype) for i in range(2))
    spec = tf.TensorSpec((None, *shape[1:]) if unknown else shape, dtype)
    runs, first = [], []
    for layer in pair(name, shape[-1], policy):
        layer.build(shape)
        run = function_of(layer, mode, spec)
        start = time.perf_counter()
        run(x, dy)
        first.append(time.perf_counter() - start)
        runs.append(run)
    runs.append(runs[1])  # Keras against itself
    medians = interleaved([functools.partial(run, x, dy) for run in runs], repeats)
    return {
        "layer": name, "shape": list(shape), "dtype": dtype, "batch": "unknown" if unknown else "static", "mode": mode,
        "dlkit_ms": round(1e3 * medians[0], 3), "keras_ms": round(1e3 * medians[1], 3),
        "ratio": round(medians[1] / medians[0], 3), "keras_to_itself": round(medians[2] / medians[1], 3), "n": repeats,
        "dlkit_compile_s": round(first[0] - medians[0], 3), "keras_compile_s": round(first[1] - medians[1], 3),
    }  # fmt: skip


CHAIN = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, tensorflow as tf
from dlkit import layers
length, who, dtype, mode = int(sys.argv[1]), *sys.argv[2:5]
keras.config.set_dtype_policy("float32" if dtype == "float32" else "mixed_" + dtype)
make = layers.GroupNorm if who == "dlkit" else keras.layers.GroupNormalization
norms = [make(32, epsilon=1e-5) for _ in range(length)]
for norm in norms: norm.build((32, 56, 56, 64))
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for norm in norms: y = norm(y)
    return tape.gradient(y, x)
if mode == "graph": step = tf.function(step, autograph=False)
step(tf.random.normal((32, 56, 56, 64), dtype=dtype))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory():
    """Returns MiB held per GroupNorm layer for the backward pass: slope of the peak between two lengths of a chain."""
    result = {}
    for mode, lengths in (("graph", (4, 20)), ("eager", (4, 12))):
        for dtype in DTYPES:
            held = {}
            for who in ("dlkit", "keras"):
                peaks = []
                for length in lengths:
                    command = [sys.executable, "-c", CHAIN, str(length), who, dtype, mode]
                    peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
                held[who] = round((peaks[1] - peaks[0]) / 1024 / (lengths[1] - lengths[0]), 1)
            tensor = round(32 * 56 * 56 * 64 * (4 if dtype == "float32" else 2) / 2**20, 1)
            result[f"{mode}, {dtype}"] = {
                **held,
                "tensor": tensor,
                "saved": round(1 - held["dlkit"] / held["keras"], 3),
            }
    return result


def carried(layer, shape, dtype):
    """Returns the bytes that a graph carries from its forward to its backward pass, as multiples of the input's.

    Views count once, with the tensor they show.
    """
    layer.build(shape)
    options = {"training": True} if type(layer).__name__.startswith("Batch") else {}
    forward = tf.function(lambda x: layer(x, **options), autograph=False)
    concrete = forward.get_concrete_function(tf.TensorSpec(shape, dtype))
    split, _ = concrete._delayed_rewrite_functions.forward_backward()
    kept = {}
    for tensor in split.graph.outputs[1:]:
        while tensor.op.type in ("Identity", "IdentityN", "Reshape"):
            tensor = tensor.op.inputs[tensor.value_index]
        kept[tensor.name] = tensor.dtype.size * (tensor.shape.num_elements() or 0)
    return round(sum(kept.values()) / (tf.as_dtype(dtype).size * int(np.prod(shape))), 2)


def carried_by_all():
    """Returns {layer, dtype: {dlkit, keras}} in multiples of the input."""
    result = {}
    for name in ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "BatchNorm"):
        for dtype in DTYPES:
            policy = "float32" if dtype == "float32" else "mixed_bfloat16"
            ours, theirs = (carried(layer, SHAPES[0], dtype) for layer in pair(name, SHAPES[0][-1], policy))
            result[f"{name}, {dtype}"] = {"dlkit": ours, "keras": theirs, "saved": round(1 - ours / theirs, 3)}
    return result


def bounds(repeats=50):
    """Returns the milliseconds of a call alone, and of one reading and writing of the first shape in float32.

    "cold" is measured behind the same on another tensor of twice the size, as Keras' temporaries leave the cache.
    """
    x, other, nothing = tf.ones(SHAPES[0]), tf.ones((2 * SHAPES[0][0], *SHAPES[0][1:])), tf.zeros(())
    run = tf.function(lambda t: t * 2, autograph=False)

    def median(t, before=None):
        times = []
        for _ in range(repeats):
            if before is not None:
                run(before)
            start = time.perf_counter()
            run(t)
            times.append(1e3 * (time.perf_counter() - start))
        return round(float(np.median(times[repeats // 5 :])), 3)

    found = {"call": median(nothing), "warm": median(x), "cold": median(x, other)}
    return found | {"warm_gb_per_s": round(2e-6 * 4 * int(np.prod(SHAPES[0])) / found["warm"], 1)}


def native(repeats):
    """Returns PyTorch's time over dlkit's by layer, mode and dtype: geometric means over the shapes, channels_last."""
    import torch

    torch.set_num_threads(os.cpu_count())
    found = {}
    for name in ("GroupNorm", "InstanceNorm"):
        for mode in ("forward", "forward+backward"):
            for dtype in DTYPES:
                ratios = []
                for shape in SHAPES:
                    layer = pair(name, shape[-1], "float32" if dtype == "float32" else "mixed_bfloat16")[0]
                    layer.build(shape)
                    run = function_of(layer, mode, tf.TensorSpec(shape, dtype))
                    x, dy = (tf.cast(tf.random.stateless_normal(shape, (0, i)), dtype) for i in range(2))
                    calls = functools.partial(run, x, dy), _torch_function(torch, name, shape, dtype, mode)
                    interleaved(calls, 2)  # compiled and warm
                    ours, torchs = interleaved(calls, repeats)
                    ratios.append(torchs / ours)
                found[f"{name}, {mode}, {dtype}"] = round(geometric_mean(ratios), 2)
    return found


def _torch_function(torch, name, shape, dtype, mode):
    """Returns a function that runs PyTorch's group_norm on a tensor of this shape."""
    n, *positions, channels = shape
    size = (n, channels, *positions) if len(positions) == 2 else (n, channels, *positions, 1)
    kind = getattr(torch, dtype)
    x, dy = (torch.randn(size).to(kind).contiguous(memory_format=torch.channels_last) for _ in range(2))
    gamma, beta = torch.ones(channels, dtype=kind), torch.zeros(channels, dtype=kind)
    groups = groups_of(channels) if name == "GroupNorm" else channels
    inputs = [tensor.requires_grad_(mode != "forward") for tensor in (x, gamma, beta)]

    def run():
        y = torch.nn.functional.group_norm(x, groups, gamma, beta, 1e-5)
        return y if mode == "forward" else torch.autograd.grad(y, inputs, dy)

    return run


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))


def summary(cells, held, kept):
    """Returns lines: a table of geometric means and worst cells, whether each target was met, and what graphs carry."""
    lines = [
        "| layer | mode | cells | geometric mean | slowest cell | dlkit ms | Keras ms | compile s (Keras) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(c["layer"] for c in cells))
    for name in names:
        for mode in MODES:
            some = [c for c in cells if c["layer"] == name and c["mode"] == mode]
            if not some:
                continue
            mean = geometric_mean([c["ratio"] for c in some])
            ours, theirs = (geometric_mean([c[k] for c in some]) for k in ("dlkit_ms", "keras_ms"))
            compile_s = [float(np.median([c[f"{k}_compile_s"] for c in some])) for k in ("dlkit", "keras")]
            lines.append(
                f"| {name} | {mode} | {len(some)} | {mean:.2f}x | {min(c['ratio'] for c in some):.2f}x | {ours:.2f} "
                f"| {theirs:.2f} | {compile_s[0]:.2f} ({compile_s[1]:.2f}) |"
            )
    lines += ["", "| target | reached | met |", "|---|---|---|"]
    for pooled, modes, target in TARGETS:
        for mode in modes:
            ratios = [c["ratio"] for c in cells if c["layer"] in pooled and c["mode"] == mode]
            if ratios:
                mean = geometric_mean(ratios)
                met = "yes" if mean >= target else "no"
                lines.append(f"| {' and '.join(pooled)}, {mode}: at least {target}x | {mean:.2f}x | {met} |")
    for mode in MODES:
        some = [c for c in cells if c["mode"] == mode]
        if some:
            band = float(np.quantile([abs(np.log(c["keras_to_itself"])) for c in some], 0.95))
            low = float(np.exp(-band))
            below, slower = ([c for c in some if c["ratio"] < limit] for limit in (1.0, low))
            worst = min(c["ratio"] for c in some)
            lines.append(
                f"| never slower than Keras, {mode}, {len(some)} cells (Keras against itself: {low:.2f} to "
                f"{1 / low:.2f}) | {len(slower)} cells below {low:.2f}, {len(below)} below 1, worst {worst:.2f}x | "
                f"{'no' if slower else 'yes'} |"
            )
    for case, m in (held or {}).items():
        lines.append(
            f"| memory held for backward, GroupNorm (32, 56, 56, 64), {case}: 40 % less | {100 * m['saved']:.0f} % "
            f"less: {m['dlkit']} against {m['keras']} MiB per layer, the tensor has {m['tensor']} | "
            f"{'yes' if m['saved'] >= 0.4 else 'no'} |"
        )
    if kept:
        lines += [
            "",
            "| carried from forward to backward, times the input | dlkit | Keras | less |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {case} | {m['dlkit']:.2f} | {m['keras']:.2f} | {100 * m['saved']:.0f} % |" for case, m in kept.items()
        ]
    return lines


def machine():
    cpu = next(ln.split(":")[1].strip() for ln in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in ln)
    return (
        f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, tensorflow {tf.__version__}, "
        f"keras {keras.__version__}, numpy {np.__version__}, dlkit {dlkit.__version__}"
    )


def save(stored, cells, path):
    """Puts the cells in place of the stored ones of the same kind and writes the file."""
    kind = operator.itemgetter("layer", "shape", "dtype", "batch", "mode")
    new = [kind(c) for c in cells]
    stored["cells"] = [c for c in stored["cells"] if kind(c) not in new] + cells
    stored.update(command="python benchmarks/layers.py", machine=machine())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this dtype")
    parser.add_argument("--layer", action="append", help="only this layer, for example GroupNorm")
    parser.add_argument("--mode", choices=MODES, action="append", help="only this mode")
    parser.add_argument("--batch", choices=("static", "unknown"), action="append", help="only this kind of batch axis")
    parser.add_argument("--repeats", type=int, default=11, help="interleaved calls per cell (11)")
    parser.add_argument("--part", choices=("speed", "memory", "machine", "torch"), help="only this part")
    parser.add_argument("--quick", action="store_true", help="one small shape, 3 repeats, no memory: a smoke test")
    parser.add_argument("--report", action="store_true", help="print the table of the stored results and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file; cells measured again replace old ones")
    args = parser.parse_args()
    names = [n for pooled, *_ in TARGETS for n in pooled]
    stored = json.loads(args.out.read_text()) if args.out.exists() else {"cells": [], "memory": None}
    if not args.report:
        shapes = () if args.part in ("memory", "machine", "torch") else SHAPES[1:2] if args.quick else SHAPES
        for shape in shapes:
            for name in args.layer or names:
                cells = [
                    measure(name, shape, dtype, batch == "unknown", mode, 3 if args.quick else args.repeats)
                    for dtype in args.dtype or DTYPES
                    for batch in args.batch or ("static", "unknown")
                    for mode in args.mode or MODES
                ]
                save(stored, cells, args.out)
            print(f"{shape}: {len(stored['cells'])} cells stored", file=sys.stderr, flush=True)
        if args.part == "memory" or not (args.part or args.quick or args.layer):
            stored["carried"], stored["memory"] = carried_by_all(), memory()
        if args.part == "machine" or not (args.part or args.quick or args.layer):
            stored["bounds"] = bounds()
        if args.part == "torch":
            stored["torch_over_dlkit"] = native(args.repeats)
        save(stored, [], args.out)
    print("this machine, milliseconds:", stored.get("bounds", "not measured"))
    print("PyTorch's time over dlkit's:", stored.get("torch_over_dlkit", "not measured (--part torch)"))
    print("\n".join([stored["machine"], "", *summary(stored["cells"], stored["memory"], stored.get("carried"))]))


if __name__ == "__main__":
    main()
