"""Where a run computes: float32, or half precision on processors that have it; and what suits a machine."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dlkit.layers._fast import BFLOAT16, in_bfloat16

PRECISIONS = ("float32", "bfloat16", "auto")


def has_bfloat16() -> bool:
    """Tells whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose(precision: str) -> str:
    """Resolves "auto" to what is fastest here: "bfloat16" where the processor has it, else "float32"."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16() else "float32"
    return precision


def of(recipe: Any) -> str:
    """Returns what a run of `recipe` computes in.

    "auto" stays with float32 for regression and boxes: their outputs are numbers, and bfloat16 has three digits.
    """
    if recipe.precision == "auto" and recipe.task != "classification":
        return "float32"
    return choose(recipe.precision)


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Traces graphs inside the block in `precision`; variables and what leaves a graph stay float32.

    bfloat16 is TensorFlow's graph optimiser choosing the operations that gain from it (matrix products and
    convolutions through oneDNN). The setting is restored at the end, so code outside the block is not affected.
    """
    before = in_bfloat16()
    tf.config.optimizer.set_experimental_options({BFLOAT16: choose(precision) == "bfloat16"})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({BFLOAT16: before})


@dataclasses.dataclass(frozen=True)
class Machine:
    """What `fast_math` looks at.

    Attributes:
        cpus: processors this process may use.
        bfloat16: whether they multiply bfloat16 in hardware.
        gpu: compute capability of the first CUDA device, or None.
        counted: how many threads TensorFlow would start by itself: the processors of the host.
    """

    cpus: int = 1
    bfloat16: bool = False
    gpu: tuple[int, int] | None = None
    counted: int = 1

    @classmethod
    def this(cls) -> "Machine":
        """Returns the machine this process runs on; a limit on processor time (cgroup) counts as fewer processors."""
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        allowed = min(here, _quota() or here)
        gpu = None
        for device in tf.config.list_physical_devices("GPU"):
            gpu = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
            break
        return cls(allowed, has_bfloat16(), gpu, here)


@dataclasses.dataclass(frozen=True)
class FastMath:
    """What `fast_math` chose.

    Attributes:
        precision: for `Recipe.precision`.
        policy: Keras' dtype policy for models built from now on.
        jit_compile, steps_per_execution: for `model.compile` in plain Keras; `fit` of this package needs neither.
        threads: of one operation; 0 leaves TensorFlow's number.
        reasons: one sentence for each choice.
    """

    precision: str
    policy: str
    jit_compile: bool
    steps_per_execution: int
    threads: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def fast_math(enabled: bool = True, *, machine: Machine | None = None, verbose: bool = True) -> FastMath:
    """Sets TensorFlow to what trains fastest on this machine, and says what it chose and why.

    For plain Keras programs: call it first, then build, compile with the two options it returns, and `fit`. `fit` of
    this package does the same for one run where `Recipe.precision` is "auto". On processors: fused batch
    normalisation comes with `dlkit.layers`, the graph optimiser puts convolutions and matrix products into bfloat16 if
    the hardware has it (variables, sums and norms stay float32), XLA stays off. On a GPU: Keras' mixed policy in the
    half precision of the device, and XLA.

    Args:
        enabled: False puts TensorFlow's and Keras' own settings back.
        machine: choose for this one; None looks at the present one.
        verbose: print the reasons.

    Returns:
        The choice; `str` of it is the reasons.

    >>> fast_math(machine=Machine(cpus=4), verbose=False).precision
    'float32'
    >>> print(fast_math(False, verbose=False))
    off: float32, TensorFlow's own number of threads, no XLA
    """
    choice = _choice(machine or Machine.this()) if enabled else _OFF
    tf.config.optimizer.set_experimental_options({BFLOAT16: choice.precision == "bfloat16"})
    keras.config.set_dtype_policy(choice.policy)
    if choice.threads and tf.config.threading.get_intra_op_parallelism_threads() != choice.threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(choice.threads)
        except RuntimeError:
            late = "threads: TensorFlow has started already and keeps its number; call fast_math() before anything else"
            choice = dataclasses.replace(choice, threads=0, reasons=(*choice.reasons, late))
    if verbose:
        print(choice)
    return choice


_OFF = FastMath("float32", "float32", False, 1, 0, ("off: float32, TensorFlow's own number of threads, no XLA",))


def _choice(machine: Machine) -> FastMath:
    if machine.gpu is not None:
        return _gpu_choice(machine.gpu)
    reasons = []
    if machine.bfloat16:
        precision = "bfloat16"
        reasons.append(
            "precision: bfloat16 by the graph optimiser, because this processor multiplies it in hardware; variables, "
            "sums and norms stay float32"
        )
    else:
        precision = "float32"
        reasons.append("precision: float32, because this processor has neither AVX512-BF16 nor AMX")
    reasons.append("XLA: off, because it compiles convolutions on processors 1.5 to 2 times slower than oneDNN")
    reasons.append("steps per call: 1, because a call costs well below a thousandth of a second")
    threads = machine.cpus if machine.cpus < machine.counted else 0
    reasons.append(
        f"threads: {threads}, because the process may use {machine.cpus} of {machine.counted} processors"
        if threads
        else f"threads: TensorFlow's own, one for each of {machine.cpus} processors"
    )
    return FastMath(precision, "float32", False, 1, threads, tuple(reasons))


def _gpu_choice(capability: tuple[int, int]) -> FastMath:
    major, minor = capability
    name = f"compute capability {major}.{minor}"
    if major >= 8:
        policy, why = "mixed_bfloat16", f"bfloat16, because {name} has it and it needs no scaling of the loss"
    elif major == 7:
        policy, why = "mixed_float16", f"float16, because {name} has tensor cores for it; Keras scales the loss"
    else:
        policy, why = "float32", f"float32, because {name} has no tensor cores"
    reasons = (
        f"precision: {why}",
        "XLA: on, because it fuses what lies between convolutions",
        "steps per call: 16, because a GPU waits for the calls",
    )
    return FastMath("float32", policy, True, 16, 0, reasons)


def _quota() -> int | None:
    """Returns the processors that a cgroup's limit amounts to, rounded up, or None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else max(1, -(-int(limit) // int(period)))
    except (OSError, ValueError):
        return None
