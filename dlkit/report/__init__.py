"""Reports: pages drawn from what a run wrote. `fit` writes data, this package draws it."""

from dlkit.report._compare import compare
from dlkit.report._page import write
from dlkit.report._search_page import write_search

__all__ = ["write", "compare", "write_search"]
