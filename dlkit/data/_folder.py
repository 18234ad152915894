"""Sources of files: a folder per class, or a table of path, label and box."""

import csv
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlkit._errors import InputError
from dlkit.data._stores import Files
from dlkit.data.sources import Source, refuse_twice, valid_boxes

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")
_NOT_READ = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl")  # pictures that TensorFlow cannot decode
_TABLES = (".csv", ".jsonl")


def from_folder(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    on_bad: str = "error",
    follow_links: bool = False,
    name: str | None = None,
) -> Source:
    """Returns the source of a folder of pictures, or of a table that lists them.

    A folder has one subfolder per class, whose name is the class name; deeper subfolders belong to their class; hidden
    files and folders are left out, and so is what is no picture (a warning counts pictures in formats that are not
    read). A table is a `.csv` with a header, or a `.jsonl` with one object per line, with `path` (relative to the
    table) and `label`, a box as `x`, `y`, `width`, `height` (or one field `box`, a list in JSONL, numbers separated by
    spaces in CSV) in fractions of the picture, or both. Files are taken in the order of their paths, so the order of
    the file system does not matter.

    Args:
        path: the folder or the table.
        classes: the class names in the order of their ids; default: the sorted names that are found.
        on_bad: "error": a pipeline over this source first reads every file and refuses with the list of bad ones;
            "skip": read every file now and leave out exactly the bad ones; `source.skipped` lists them.
        follow_links: False counts a symbolic link that leads out of the folder as a bad file, so that a downloaded
            folder cannot make you publish or train on what it points to.
        name: what reports call it; default: the folder's name.

    Raises:
        InputError: no such folder, no pictures, fewer than two classes, a label that `classes` lacks or a name that it
            holds twice, a picture listed twice or outside the folder, a box outside its picture.
    """
    path = Path(path)
    if on_bad not in ("error", "skip"):
        raise InputError(
            f"on_bad={on_bad!r}; allowed: 'error' (refuse with the list), 'skip' (leave them out and say so)"
        )
    if classes is not None:
        refuse_twice(classes)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        source = _from_tree(path, classes, name or path.resolve().name)
    elif path.suffix.lower() in _TABLES:
        source = _from_table(path, classes, name or path.stem)
    else:
        raise InputError(f"{path} is neither a folder nor a table ({', '.join(_TABLES)})")
    if not follow_links and isinstance(source.store, Files):
        source.store.refused = _leading_out(
            path if path.is_dir() else path.parent, [Path(p) for p in source.store.paths]
        )
    return source.without_bad() if on_bad == "skip" else source


def _pictures(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yields the pictures below a folder in sorted order, also those of formats that are not read.

    Enters no folder twice, so that links cannot loop.
    """
    pending = [folder]
    while pending:
        here = pending.pop()
        folders = []
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                target = Path(entry.path).resolve()
                if target not in seen:
                    seen.add(target)
                    folders.append(Path(entry.path))
            elif entry.name.lower().endswith((*EXTENSIONS, *_NOT_READ)):
                yield Path(entry.path)
        pending.extend(reversed(folders))


def _is_not_read(file: Path) -> bool:
    return file.name.lower().endswith(_NOT_READ)


def _leading_out(root: Path, files: list[Path]) -> dict[int, str]:
    """Returns the rows whose file is a link, or lies below one, to somewhere outside the folder, with the reason."""
    top, outside, folders = os.path.realpath(root), {}, {}
    for row, file in enumerate(files):
        parent = str(file.parent)
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        if file.is_symlink() or not (folders[parent] + os.sep).startswith(top + os.sep):
            target = os.path.realpath(file)
            if not target.startswith(top + os.sep):
                outside[row] = f"a link that leads out of the folder, to {target}; pass follow_links=True to allow it"
    return outside


def _from_tree(root: Path, classes: Sequence[str] | None, name: str) -> Source:
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    seen = {root.resolve(), *((root / label).resolve() for label in found)}
    files = {label: list(_pictures(root / label, seen)) for label in found}
    left_out = [file.suffix.lower() for label in found for file in files[label] if _is_not_read(file)]
    files = {label: [file for file in files[label] if not _is_not_read(file)] for label in found}
    if left_out:
        kinds = ", ".join(sorted(set(left_out)))
        warnings.warn(
            f"{len(left_out)} pictures in {root} are left out: {kinds} is not read; convert them to PNG or JPEG",
            stacklevel=3,
        )
    if not any(files.values()):
        raise InputError(f"{root} holds no pictures: one subfolder per class with {', '.join(EXTENSIONS)} is expected")
    used = [label for label in found if files[label]]
    if classes is None:
        if empty := sorted(set(found) - set(used)):
            raise InputError(
                f"class folders without pictures in {root}: {', '.join(empty)}; remove them or pass classes=..."
            )
        classes = used
    if len(classes) < 2:
        found_one = f"one class, {classes[0]!r}" if classes else "no class"
        raise InputError(f"{root} has {found_one}: a classifier needs at least two class folders")
    if strange := sorted(set(used) - set(classes)):
        raise InputError(
            f"class folders in {root} that classes lacks: {', '.join(strange)}; classes: {', '.join(classes)}"
        )
    ids = {label: i for i, label in enumerate(classes)}
    pairs = [(file, ids[label]) for label in used for file in files[label]]
    pairs.sort(key=lambda pair: pair[0].relative_to(root).as_posix())
    return _source(
        name, root, [file for file, _ in pairs], classes=tuple(classes), labels=[label for _, label in pairs]
    )


def _source(
    name: str, root: Path, files: list[Path], *, classes: tuple[str, ...] | None, labels: Any = None, boxes: Any = None
) -> Source:
    identities = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return Source(
        name, "box" if boxes is not None else "classification", Files(list(map(os.path.abspath, files)), identities),
        classes=classes, labels=None if labels is None else np.asarray(labels, np.int64),
        boxes=None if boxes is None else valid_boxes(boxes, len(files), identities),
        rows=np.arange(len(files), dtype=np.int64),
    )  # fmt: skip


def _from_table(table: Path, classes: Sequence[str] | None, name: str) -> Source:
    rows = list(_csv_rows(table) if table.suffix.lower() == ".csv" else _jsonl_rows(table))
    if not rows:
        raise InputError(f"{table} lists no pictures")
    rows.sort(key=lambda row: row[1]["path"])
    seen: dict[str, int] = {}
    for line, row in rows:
        if (place := os.path.normpath(row["path"])) in seen:
            raise InputError(f"{table} lists {row['path']!r} twice, in lines {seen[place]} and {line}: keep one")
        seen[place] = line
    labels = _labels(table, rows)
    boxes = _boxes(table, rows)
    if labels is None and boxes is None:
        raise InputError(f"{table} has neither a label nor a box; its fields are {', '.join(rows[0][1])}")
    if labels is None and classes is not None:
        raise InputError(f"classes={tuple(classes)!r} name labels, and {table} has none")
    ids = None
    if labels is not None:
        names = tuple(classes) if classes is not None else tuple(sorted(set(labels)))
        for (line, row), label in zip(rows, labels, strict=True):
            if label not in names:
                raise InputError(
                    f"{table}, line {line}: class {label!r} of {row['path']} is not among {', '.join(names)}"
                )
        if len(names) < 2 and boxes is None:
            raise InputError(f"{table} has one class, {names[0]!r}: a classifier needs at least two")
        classes, ids = names, [names.index(label) for label in labels]
    files = [_inside(table, line, row["path"]) for line, row in rows]
    return _source(
        name,
        table.parent,
        files,
        classes=tuple(classes) if ids is not None and classes else None,
        labels=ids,
        boxes=boxes,
    )


def _inside(table: Path, line: int, path: str) -> Path:
    """Returns the listed file's path; refuses one that the table's own text leads out of its folder."""
    if os.path.isabs(path) or ".." in Path(path).parts:
        raise InputError(f"{table}, line {line}: {path!r} leads out of {table.parent}; paths are relative to the table")
    return table.parent / path


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        if not reader.fieldnames or "path" not in reader.fieldnames:
            raise InputError(f"{table} has no column 'path'; its first line must name the columns, e.g. path,label")
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{table}, line {reader.line_num}: {len(reader.fieldnames)} fields are expected")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{table}, line {reader.line_num}: {error}") from error


def _jsonl_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(table.read_bytes().splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise InputError(f"{table}, line {line} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise InputError(f"{table}, line {line} is not an object with a path")
        yield line, row


def _labels(table: Path, rows: list[tuple[int, dict[str, Any]]]) -> list[str] | None:
    if not any("label" in row for _, row in rows):
        return None
    for line, row in rows:
        if row.get("label") in (None, ""):
            raise InputError(f"{table}, line {line}: {row['path']} has no label")
    return [str(row["label"]) for _, row in rows]


def _boxes(table: Path, rows: list[tuple[int, dict[str, Any]]]) -> list[list[float]] | None:
    if not any("box" in row or "width" in row for _, row in rows):
        return None
    boxes = []
    for line, row in rows:
        try:
            box = row["box"] if "box" in row else [row[field] for field in ("x", "y", "width", "height")]
            box = [float(value) for value in (box.split() if isinstance(box, str) else box)]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{table}, line {line}: {row['path']} has no box of four numbers x y width height"
            ) from error
        if len(box) != 4:
            raise InputError(f"{table}, line {line}: the box of {row['path']} has {len(box)} numbers, not 4")
        boxes.append(box)
    return boxes
