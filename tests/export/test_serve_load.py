"""A reduced run of benchmarks/load.py: hundreds of wrong requests and slow clients, each with its code and in time."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from serve_process import png

pytest.importorskip("starlette")


@pytest.fixture(scope="module")
def load():
    path = Path(__file__).parents[2] / "benchmarks" / "load.py"
    spec = importlib.util.spec_from_file_location("load_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_wrong_requests_get_their_codes_within_a_second_and_leave_no_memory_behind(load, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "made" / "net" / "1")
    pictures = [png(np.random.default_rng(i).integers(0, 255, (32, 32, 3))) for i in range(8)]
    found = load.mutated(tmp_path, pictures, 1500, slow=8)
    assert found["wrong"] == []
    assert found["over_one_second"] == {}
    assert found["good_afterwards"] >= 200
    assert found["requests"] >= 1500
    assert {"bomb", "slow", "cut_picture", "nested", "unknown"} <= set(found["kinds"])
    assert found["memory_after_mb"] - found["memory_before_mb"] < 80
