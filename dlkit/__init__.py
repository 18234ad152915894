"""dlkit: Keras layers, founding architectures, an exact data stream, search and verified SavedModels.

The subpackages load on first use, so `import dlkit` imports no framework:

    >>> import dlkit
    >>> dlkit.layers.RMSNorm().epsilon
    1e-06
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PACKAGES = (
    "layers", "initializers", "models", "data", "train", "tune", "export", "report", "testing", "lectures",
)  # fmt: skip
__all__ = [*_PACKAGES, "__version__"]

if TYPE_CHECKING:  # type checkers and editors see what __getattr__ finds
    from dlkit import data, export, initializers, layers, lectures, models, report, testing, train, tune  # noqa: F401


def __getattr__(name: str) -> ModuleType:
    if name in _PACKAGES:
        return importlib.import_module(f"dlkit.{name}")
    raise AttributeError(f"module 'dlkit' has no attribute {name!r}; its packages are {', '.join(_PACKAGES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
