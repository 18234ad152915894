"""What a verification found: one row per check, the largest differences, and the same as text, table or JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from dlkit._errors import InputError


@dataclass(frozen=True)
class Check:
    """One comparison: the largest absolute difference found and what it may be; None where nothing is measured."""

    name: str
    ok: bool
    difference: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The result of `verify`: `ok` is true when every check passed.

    Args:
        path: the version folder that was checked.
        checks: one `Check` per comparison, in the order they ran.
        seconds: wall clock from the request to the answer, with what is left of the process's start.
        versions: of the process that checked (TensorFlow, NumPy, Python).
        samples: number of pictures (or rows) that went through.
        accuracy: share of labelled samples answered rightly, None without labels.

    >>> report = Report("saved_models/digits/1", (Check("serving_default logits", True, 2e-7, 1e-4),))
    >>> report.ok, report.max_difference
    (True, 2e-07)
    """

    path: str
    checks: tuple[Check, ...]
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    accuracy: float | None = None

    @property
    def ok(self) -> bool:
        """True when there was something to check and every check passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def max_difference(self) -> float:
        """The largest difference of an output from the evaluation pipeline's; 0.0 when none was measured."""
        return max((check.difference for check in self.checks if check.difference is not None), default=0.0)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for `verification.json`."""
        return {
            "ok": self.ok,
            "path": self.path,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "max_difference": self.max_difference,
            "seconds": round(self.seconds, 3),
            "versions": self.versions,
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Report":
        """Rebuilds the report that `to_dict` wrote."""
        try:
            checks = tuple(Check(**check) for check in value["checks"])
            return cls(
                value["path"], checks, value["seconds"], value["versions"], value["samples"], value.get("accuracy")
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"this is not a verification report: {error}") from error

    def __str__(self) -> str:
        head = f"{self.path}: {'verified' if self.ok else 'FAILED'}, {len(self.checks)} checks, {self.samples} samples"
        return "\n".join([head, *(_line(check) for check in self.checks)])

    def __rich__(self) -> Any:
        """Draws the report as a table; text from a model is never read as markup."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"{self.path}: {'verified' if self.ok else 'FAILED'}"), title_justify="left")
        for column in ("check", "result", "difference", "allowed", "detail"):
            table.add_column(column)
        for check in self.checks:
            colour = "green" if check.ok else "bold red"
            row = (check.name, Text("ok" if check.ok else "FAILED", colour), _number(check.difference))
            table.add_row(
                *(cell if isinstance(cell, Text) else Text(cell) for cell in row),
                _number(check.limit),
                Text(check.detail),
            )
        return table


class VerificationError(RuntimeError):
    """An export that does not compute what was evaluated; nothing of it was published. `report` has the checks."""

    def __init__(self, report: Report):
        self.report = report
        rows = "\n".join(_line(check) for check in report.failures)
        super().__init__(
            f"the export failed {len(report.failures)} of {len(report.checks)} checks, nothing was published:\n{rows}"
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _line(check: Check) -> str:
    measured = "" if check.difference is None else f" {check.difference:.3g} (allowed {_number(check.limit)})"
    return f"  {'ok    ' if check.ok else 'FAILED'} {check.name}{measured}{'  ' + check.detail if check.detail else ''}"
