"""Depth: build, trace, save, reload and memory of CIFAR ResNets beside the flat Keras graph of the same network.

    python benchmarks/depth.py                     # 20, 110, 1202: seconds, with a batch of 2
    python benchmarks/depth.py --memory            # also one training step of 1202 at batch 128, rematerialised

Every measurement runs in a process of its own; results go to benchmarks/results/depth.json. The flat graph is the same
blocks without looped stages; at depth 1202 Keras refuses it at Python's default recursion limit.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "depth.json"

CHILD = """
import json, resource, sys, tempfile, time
from pathlib import Path
import keras, numpy as np
from dlkit import models
from dlkit.models import _resnet_cifar

depth, kind, batch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if kind == "flat":
    _resnet_cifar.FLAT = 10**6
out = {"depth": depth, "kind": kind, "batch": batch}
start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
try:
    t = time.perf_counter()
    model = models.resnet_cifar(depth, remat=kind == "remat")
    out["build_s"] = time.perf_counter() - t
    x = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype("float32")
    y = np.arange(batch) % 10
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    t = time.perf_counter()
    model.train_on_batch(x, y)
    out["trace_and_first_step_s"] = time.perf_counter() - t
    t = time.perf_counter()
    model.train_on_batch(x, y)
    out["second_step_s"] = time.perf_counter() - t
    out["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    out["gib_before_building"] = start_memory
    if batch < 128:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "m.keras")
            t = time.perf_counter()
            model.save(path)
            out["save_s"] = time.perf_counter() - t
            t = time.perf_counter()
            keras.models.load_model(path)
            out["reload_s"] = time.perf_counter() - t
except RecursionError:
    out["error"] = "RecursionError"
print(json.dumps(out))
"""


def measure(depth: int, kind: str, batch: int) -> dict:
    """Returns one row, measured in a fresh process."""
    command = [sys.executable, "-c", CHILD, str(depth), kind, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"depth {depth}, {kind}: {done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(" ".join(f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="also measure 1202 layers at batch 128 (minutes)")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 110, 1202])
    arguments = parser.parse_args()
    rows = [measure(depth, kind, 2) for depth in arguments.depths for kind in ("dlkit", "remat", "flat")]
    if arguments.memory:
        rows.append(measure(1202, "remat", 128))
    seconds = {(r["depth"], r["kind"]): r.get("trace_and_first_step_s") for r in rows if r["batch"] == 2}
    ratios = {
        kind: seconds[1202, kind] / seconds[110, kind]
        for kind in ("dlkit", "remat")
        if seconds.get((1202, kind)) and seconds.get((110, kind))
    }
    print("trace and first step, 1202 over 110:", {k: round(v, 2) for k, v in ratios.items()})
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows, "ratio_1202_110": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
