"""All results on one page."""

import os
from pathlib import Path

from dlkit._errors import InputError
from dlkit._files import write_text
from dlkit.lectures._run import names, read, text, verdict

_HEAD = """# The lectures, reproduced

Each formula of the lectures is a layer here, and each claim an experiment that runs: `dlkit lectures` lists them and
`dlkit lectures run NAME` repeats one. A claim that did not reproduce is shown as such. This page is written by
`dlkit lectures gallery`, from the results of full runs.
"""


def gallery(folder: str | os.PathLike[str] = "docs/lectures", page: str | os.PathLike[str] = "") -> Path:
    """Writes the page of all results below `folder`.

    Args:
        folder: holds NAME/result.json and figures, one subfolder per experiment.
        page: the Markdown file; empty takes FOLDER.md.

    Raises:
        InputError: no result is there.
    """
    folder = Path(folder)
    page = Path(page or folder.with_suffix(".md"))
    found = [name for name in names() if (folder / name / "result.json").exists()]
    if not found:
        raise InputError(f"no results in {folder}; `dlkit lectures run NAME --out {folder}/NAME` writes one")
    results = {name: read(folder / name) for name in found}
    rows = ["| experiment | claims | agree | do not reproduce |", "|---|---|---|---|"]
    for result in results.values():
        verdicts = [verdict(claim, result["quick"]) for claim in result["claims"]]
        anchor = "".join(c for c in result["title"].lower().replace(" ", "-") if c.isalnum() or c in "-_")
        agree = verdicts.count("agrees")
        rows.append(f"| [{result['title']}](#{anchor}) | {len(verdicts)} | {agree} | {len(verdicts) - agree} |")
    relative = os.path.relpath(folder, page.parent)
    sections = [text(result, 2, f"{relative}/{name}") for name, result in results.items()]
    return write_text(page, "\n".join([_HEAD, *rows, "", *sections]))
