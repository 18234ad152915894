"""The one exception for wrong input, and the sentence that names the nearest valid choice."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input from the user: an argument, a file or a folder. The command line exits with code 2 on it.

    The message says what was received, what was expected and how to fix it.
    """


def unknown(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """Returns the error for a name that is not among `choices`, with the nearest one.

    >>> print(unknown("model", "resnet5", ["resnet50", "vgg16"]))
    unknown model 'resnet5'; did you mean 'resnet50'? Known: resnet50, vgg16
    """
    known = sorted(choices)
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")


def require(package: str, extra: str, purpose: str) -> InputError:
    """Returns the error for a missing optional dependency: one line with the command that installs it.

    >>> print(require("onnxruntime", "onnx", "ONNX export"))
    ONNX export needs onnxruntime, which is not installed: pip install "dlkit[onnx]"
    """
    return InputError(f'{purpose} needs {package}, which is not installed: pip install "dlkit[{extra}]"')
