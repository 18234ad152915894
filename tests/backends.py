"""Runs the tests of layers and models on each Keras backend, one pytest process per backend.

python tests/backends.py                   tensorflow, jax and torch, as far as they are installed
python tests/backends.py jax -- -k Norm    one backend; what follows -- goes to pytest
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BACKENDS = ("tensorflow", "jax", "torch")
PATHS = {"layers": ("tests/layers", "tests/test_initializers.py"), "models": ("tests/models",)}


def run(backend: str, parts: list[str], extra: list[str]) -> int:
    """Returns pytest's exit status with KERAS_BACKEND set to `backend`."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    paths = [path for part in parts for path in PATHS[part] if (ROOT / path).exists()]
    print(f"== {backend}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", *paths, *extra]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Runs the backends that were asked for; the status is 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", nargs="*", metavar="backend", help=f"of {', '.join(BACKENDS)}; all by default")
    parser.add_argument("--only", choices=PATHS, action="append", help="only the tests of this package")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    asked = args.backend
    wrong = sorted(set(asked) - set(BACKENDS))
    if wrong:
        parser.error(f"unknown backend {wrong[0]!r}; known: {', '.join(BACKENDS)}")
    chosen = asked or [b for b in BACKENDS if importlib.util.find_spec(b)]
    results = {backend: run(backend, args.only or list(PATHS), sys.argv[split + 1 :]) for backend in chosen}
    for backend, status in results.items():
        print(f"{backend}: {'passed' if status == 0 else f'failed with status {status}'}")
    return max(results.values())


if __name__ == "__main__":
    sys.exit(main())
