"""The files of a search, from which all of it is rebuilt: three small records per trial, each complete by itself.

trials/trial_0007/started.json   the chief gave the trial out: its place in the order of events, its values
trials/trial_0007/result.json    the worker finished: metrics, or why there are none
trials/trial_0007/ended.json     the chief told the oracle: its place in the order of events and all of the above

A record appears by one rename and carries a checksum. KerasTuner's own files lie beside them and are never read.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

from dlkit._files import write_json

KINDS = ("started", "result", "ended")


class DamagedRecordWarning(UserWarning):
    """A record of a search is damaged; it is named, and what it said is rebuilt from the others."""


def trial_folder(directory: Path, trial_id: str) -> Path:
    """Returns where a trial's records and runs lie."""
    return directory / "trials" / f"trial_{trial_id}"


def write(folder: Path, kind: str, record: dict[str, Any]) -> None:
    """Writes one record of a trial in one step."""
    write_json(folder / f"{kind}.json", {"checksum": _checksum(record), "record": record})


def read(folder: Path, kind: str) -> dict[str, Any] | None:
    """Returns a record, or None where there is none.

    Warns:
        DamagedRecordWarning: the file is there and does not hold what was written.
    """
    path = folder / f"{kind}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["checksum"] != _checksum(held["record"]):
            raise ValueError("its checksum does not match")
        return dict(held["record"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is damaged ({error}); it is rebuilt", DamagedRecordWarning, stacklevel=2)
        return None


def read_all(directory: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns trial id -> kind -> record for every trial of a search, in the order of the ids."""
    found = {}
    for folder in (directory / "trials").glob("trial_*"):
        name = re.fullmatch(r"trial_(\d+)", folder.name)
        if name:
            held = {kind: record for kind in KINDS if (record := read(folder, kind)) is not None}
            found[name.group(1)] = held
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
