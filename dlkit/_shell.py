"""What surrounds a command: held-back output of the frameworks, settings as words, errors as one sentence."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from dlkit._errors import InputError


def explain(error: BaseException) -> int:
    """Prints an error as one sentence and returns the exit code: 2 wrong input, 130 stopped, 1 anything else."""
    text = str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        print(f"stopped: {text}", file=sys.stderr)
        return 130
    if isinstance(error, (InputError, FileExistsError, FileNotFoundError, PermissionError)):
        print(f"error: {text}", file=sys.stderr)
        return 2
    print(f"error: {type(error).__name__}: {text}\nThe same command with --debug shows where.", file=sys.stderr)
    return 1


def settings(items: tuple[str, ...]) -> dict[str, str]:
    """Returns what several --set FIELD=VALUE mean."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InputError(f"--set takes FIELD=VALUE, such as --set epochs=10; got {item!r}")
        found[name] = value
    return found


@contextlib.contextmanager
def frameworks() -> Iterator[None]:
    """Holds back what TensorFlow prints while it is imported; shows it if the import fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    closed = sys.stderr is None  # `2>&-`: nothing can be printed, and nothing is to be held back
    with contextlib.nullcontext() if closed else _held_back():
        import tensorflow as tf

        tf.zeros(())  # the first operation prints too
        tf.get_logger().setLevel("ERROR")  # a new model per trial is a new trace; no reason to warn
        yield


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Keeps standard error in a file, and shows it after an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            os.dup2(kept, 2)
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
