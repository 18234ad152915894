"""The packages that the other forms of an export need: looked for before any work starts, imported by nobody here."""

import importlib.util

from dlkit._errors import require

PACKAGES = {
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "openvino": ("onnx", "tf2onnx", "openvino"),
    "litert": ("ai_edge_litert",),
}
RUNTIMES = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "litert": ("ai_edge_litert",)}


def check_packages(form: str) -> None:
    """Raises InputError when a package that writes and checks this form is missing."""
    _check(form, PACKAGES[form], "export")


def check_runtime(form: str) -> None:
    """Raises InputError when a package that reads this form is missing."""
    _check(form, RUNTIMES[form], "verification")


def _check(form: str, packages: tuple[str, ...], purpose: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise require(package.replace("_", "-"), form, f"{form} {purpose}")
