"""Rewrites of the served network that keep its function: each is compared with the network before it and timed."""

import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit.export._cases import LIMITS
from dlkit.export._fold import Folded, fold
from dlkit.export._merge import Merged, merge
from dlkit.export._options import Options
from dlkit.export._signatures import Core, trace
from dlkit.export._strides import Strided, early_strides

PARITY = 1e-4  # what a rewrite may change, relative to the largest output above 1


def freeze(core: Core) -> Core:
    """Returns `core` with its weights as constants of one function, which every signature shares."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(core.function, lower_control_flow=False)
    return Core(frozen, core.names, core.weights)


def optimised(
    core: Core, net: Any, options: Options, shape: tuple[int | None, ...], tensors: np.ndarray, log: bool
) -> tuple[Core, dict[str, Any]]:
    """Returns the faster core and what was done: each rewrite with its difference and latency before and after.

    Operations are merged for TensorFlow alone: other runtimes have kernels that gain nothing by it.

    Raises:
        ParityError: a rewrite changes the outputs by more than its limit.
    """
    cores, names, precision = [core], [], options.precision
    folded, strided, merged = Folded(net.model), Strided(net.model), Merged(net.model)
    if options.optimize is not None:
        folded = fold(net.model)
        strided = early_strides(folded.model)
        merged = merge(strided.model) if options.form == "saved_model" else Merged(strided.model)
    if folded.batch_norms:
        cores.append(trace(folded.model, shape, net.names, log=log))
        names.append("fold")
    if strided.layers:
        cores.append(trace(strided.model, shape, net.names, log=log))
        names.append("strides")
    if merged.sums or merged.paddings:
        cores.append(trace(merged.model, shape, net.names, log=log))
        names.append("merge")
    if precision == "bfloat16":
        from dlkit.export._reduced import bfloat16

        cores.append(trace(bfloat16(merged.model), shape, net.names, log=log))
        names.append("bfloat16")
    if options.optimize == "freeze":
        cores.append(freeze(cores[-1]))
        names.append("freeze")
    milliseconds = latencies(tuple(cores), tensors[:1])
    steps = []
    for i, name in enumerate(names):
        limit = LIMITS[precision]["main"] if name == "bfloat16" else PARITY
        difference = largest_difference(cores[i], cores[i + 1], tensors)
        if not difference <= limit:
            raise ParityError(name, difference, limit)
        step: dict[str, Any] = {"rewrite": name, "difference": difference, "limit": limit}
        steps.append(step | {"milliseconds_before": milliseconds[i], "milliseconds_after": milliseconds[i + 1]})
    total = {"difference": largest_difference(core, cores[-1], tensors), "steps": steps}
    return cores[-1], folded.record() | strided.record() | merged.record() | total | {
        "milliseconds_before": milliseconds[0],
        "milliseconds_after": milliseconds[-1],
    }


class ParityError(RuntimeError):
    """A rewrite of the network that does not keep its function; nothing was published."""

    def __init__(self, name: str, difference: float, limit: float):
        super().__init__(
            f"the rewrite {name!r} changes the outputs by {difference:.3g}, at most {limit:.3g} is allowed; nothing "
            "was published. Export with optimize=None and precision='float32'"
        )


def latencies(cores: tuple[Core, ...], tensors: np.ndarray, runs: int = 9) -> list[float]:
    """Returns the median milliseconds of each core on `tensors`, measured in turns after two calls each."""
    rows = tf.constant(tensors)
    spec = tf.TensorSpec(rows.shape, rows.dtype)
    calls = [  # traced here: TensorFlow counts traces at calls, and would warn of the fifth export in one process
        tf.function(lambda rows, core=core: core(rows)[core.names[0]], autograph=False).get_concrete_function(spec)
        for core in cores
    ]
    taken: list[list[float]] = [[] for _ in cores]
    for run in range(runs + 2):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call(rows).numpy()
            if run >= 2:
                taken[i].append(1000 * (time.perf_counter() - started))
    return [round(statistics.median(times), 3) for times in taken]


def largest_difference(first: Core, second: Core, tensors: np.ndarray) -> float:
    """Returns the largest difference of the main outputs, relative to the largest of them above 1."""
    rows = tf.constant(tensors)
    a, b = (core(rows)[core.names[0]].numpy().astype(np.float64) for core in (first, second))
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a))))
