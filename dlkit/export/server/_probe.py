"""Tries a version in a process of its own, so that one that crashes or hangs takes no request with it.

python -P -m dlkit.export.server._probe FOLDER     (one line of JSON: {"ok": true} or {"ok": false, "reason": ...})
"""

import asyncio
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


async def probe(path: Path, seconds: float) -> str:
    """Returns why the version must not serve, or an empty string. It runs at low priority: requests come first."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(paths)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-W", "ignore", "-m", "dlkit.export.server._probe", str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, said = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        return f"it was not ready within {seconds:.0f} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = out.decode(errors="replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        return "" if answer["ok"] else str(answer["reason"])
    except (IndexError, ValueError, KeyError, TypeError):
        tail = said.decode(errors="replace").strip().splitlines()[-1:]
        return f"the process that tried it ended with {process.returncode}: {' '.join(tail)[:300]}"


def main(path: str) -> None:
    """The child: load, warm up, compare, say so."""
    os.nice(10)
    from dlkit.export.server._lean import without_keras

    with without_keras():
        from dlkit.export.server._loaded import Loaded, RefusedError

    try:
        Loaded(Path(path)).check()
        answer: dict[str, object] = {"ok": True}
    except RefusedError as error:
        answer = {"ok": False, "reason": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
