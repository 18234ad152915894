"""Reports: pages drawn from what a run wrote. `fit` writes data, this package draws it."""

from dlkit.report._page import write

__all__ = ["write"]
