"""The fresh process that checks an export: started early, because importing TensorFlow is most of its time."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dlkit.export._report import Check, Report

_SCRIPT = Path(__file__).with_name("_check.py")
SECONDS = 1800.0  # a hung graph must not hang the export for ever


class Checker(contextlib.AbstractContextManager["Checker"]):
    """A child process that imports only TensorFlow and waits for exports to check, one after the other.

    It runs on the processor even where an accelerator is present, which the calling process may hold entirely.
    """

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-P", "-W", "ignore", str(_SCRIPT)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors, env=environment
        )

    def run(self, folder: Path, request: dict[str, Any], cases: dict[str, np.ndarray]) -> Report:
        """Checks the export that `request` describes; `folder` is a scratch folder for the exchange.

        Raises:
            RuntimeError: the process died or hung; the message holds the end of what it printed.
        """
        started = time.monotonic()
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        np.savez(folder / "cases.npz", **cases)  # type: ignore[arg-type]
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        self._ask(folder)
        while not result.exists():
            if self._process.poll() is not None and not result.exists():
                raise RuntimeError(
                    f"the process that checks the export ended with {self._process.returncode}: {self._tail()}"
                )
            if time.monotonic() - started > SECONDS:
                raise RuntimeError(f"the process that checks the export gave no answer in {SECONDS:.0f} s")
            time.sleep(0.01)
        found = json.loads(result.read_text(encoding="utf-8"))
        checks = tuple(Check(**check) for check in found["checks"])
        seconds = time.monotonic() - started
        return Report(request["export"], checks, seconds, found["versions"], request["samples"], found["accuracy"])

    def _ask(self, folder: Path) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the process that checks the export has no input")
        with contextlib.suppress(BrokenPipeError):  # its end is noticed and told by the caller
            self._process.stdin.write(f"{json.dumps(str(folder))}\n".encode())
            self._process.stdin.flush()

    def _tail(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-2000:]

    def __exit__(self, *details: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._errors.close()
