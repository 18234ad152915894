"""Every example in a docstring runs and prints what it says; every public definition has a docstring."""

import doctest
import importlib
import inspect
import pkgutil
import warnings

import pytest

import dlkit

SKIPPED = ("dlkit.export._check", "dlkit.__main__")  # scripts


def modules():
    for found in pkgutil.walk_packages(dlkit.__path__, "dlkit."):
        if found.name not in SKIPPED:
            yield found.name


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


PACKAGES = ("layers", "models", "data", "data.augment", "train", "tune", "export", "report", "testing", "initializers")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_class_has_a_docstring(package):
    module = importlib.import_module(f"dlkit.{package}")
    public = [getattr(module, name) for name in module.__all__]
    described = [p for p in public if inspect.isfunction(p) or inspect.isclass(p)]
    assert [p.__name__ for p in described if not inspect.getdoc(p)] == []
