"""Where the arithmetic of a run happens: float32, or bfloat16 on processors that have it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

PRECISIONS = ("float32", "bfloat16", "auto")
_OPTION = "auto_mixed_precision_onednn_bfloat16"


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


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Traces graphs inside the block in `precision`; variables and what leaves a graph stay float32.

    bfloat16 is TensorFlow's graph optimiser choosing the operations that gain from it (matrix products and
    convolutions through oneDNN). The setting is restored at the end, so code outside the block is not affected.
    """
    options = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({_OPTION: choose(precision) == "bfloat16"})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_OPTION: bool(options.get(_OPTION, False))})
