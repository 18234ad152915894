"""What makes a search the search it is; another one in its folder is refused with the difference."""

import json
from pathlib import Path
from typing import Any

from dlkit._errors import InputError
from dlkit._files import write_json
from dlkit.train import Recipe
from dlkit.tune import _job

_PLAIN = ("objective", "seed", "fidelity", "seeds", "folds", "constraints")


def identity(job: _job.Job, oracle: Any, name: str) -> dict[str, Any]:
    """Returns everything that decides what the search computes, as JSON values."""
    space = {hp["config"]["name"]: hp for hp in oracle.get_space().get_config()["space"]}
    return {"space": space, "oracle": name, **trials(job)}


def trials(job: _job.Job) -> dict[str, Any]:
    """Returns the part of it that a worker knows: what decides the result of a trial with given values."""
    return {
        "recipe": job.recipe.to_dict(),
        "preprocess": job.preprocess.get_config(),
        "data": [source.fingerprint if source is not None else None for source in (job.train, job.validation)],
        **{name: getattr(job, name) for name in _PLAIN},
    }


def claim(directory: Path, identity: dict[str, Any]) -> None:
    """Writes search.json into a fresh folder; compares it in one that holds a search."""
    if (directory / "search.json").exists():
        compare(directory, identity)
    else:
        write_json(directory / "search.json", identity)


def compare(directory: Path, identity: dict[str, Any]) -> None:
    """Refuses a folder that holds another search.

    Raises:
        InputError: every difference, or a damaged search.json.
    """
    path = directory / "search.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        held["recipe"] = Recipe().to_dict() | held["recipe"]  # fields that came later have their defaults
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it if the search in this folder is yours") from None
    held, now = json.loads(json.dumps(held)), json.loads(json.dumps(identity))
    differing = [text for name, value in now.items() for text in _differences(name, held.get(name), value)]
    if differing:
        raise InputError(
            f"{directory} holds another search; choose another directory. Different: {'; '.join(differing)}"
        )


def _differences(name: str, held: Any, now: Any) -> list[str]:
    if held == now:
        return []
    if isinstance(held, dict) and isinstance(now, dict):
        keys = [key for key in {**held, **now} if held.get(key) != now.get(key)]
        return [text for key in keys for text in _differences(f"{name}.{key}", held.get(key), now.get(key))]
    there, here = (text if len(text := json.dumps(v)) <= 80 else text[:77] + "..." for v in (held, now))
    return [f"{name}: {there} there, {here} now"]
