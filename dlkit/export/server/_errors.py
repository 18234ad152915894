"""The one error of the server: a sentence for the client, with its HTTP and its gRPC code."""

from typing import Any

# canonical codes (google.rpc.Code) to what TensorFlow Serving answers over HTTP
HTTP = {
    "OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400,
    "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501, "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}  # fmt: skip
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


LONGEST = 1000  # characters of a message: requests are quoted in it, and gRPC carries 8 kB


class ServeError(Exception):
    """What a client gets instead of an answer.

    Args:
        code: the canonical name, such as "NOT_FOUND"; gRPC sends it as it is.
        message: what was wrong and what is expected.
        status: of HTTP where it says more than the code does (408, 413).
        close: the connection is closed behind the answer, because its request was not read to the end.

    >>> ServeError("NOT_FOUND", "no such model").status
    404
    """

    def __init__(self, code: str, message: str, status: int | None = None, close: bool = False):
        message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
        super().__init__(message)
        self.code, self.message, self.close = code, message, close
        self.status = HTTP[code] if status is None else status


def invalid(message: str) -> ServeError:
    """Returns the error for a request that cannot be right: 400, INVALID_ARGUMENT."""
    return ServeError("INVALID_ARGUMENT", message)


def too_large(message: str, close: bool = False) -> ServeError:
    """Returns the error for a request or a picture over a limit: 413, INVALID_ARGUMENT."""
    return ServeError("INVALID_ARGUMENT", message, status=413, close=close)


def of_tensorflow(error: Any) -> ServeError:
    """Returns what a client should know of an error that TensorFlow raised while it ran a signature."""
    number = getattr(error, "error_code", None)
    code = CODES[number] if isinstance(number, int) and 0 < number < len(CODES) else "INTERNAL"
    if isinstance(error, (TypeError, ValueError)):
        code = "INVALID_ARGUMENT"
    return ServeError(code, sentence(error))


_NOISE = (
    "Graph execution error", "Detected at node", "<stack traces", "[[{{", "[[node", "stack trace for op definition",
    'File "', "errors while running", "Original stack", "Errors may have", "0 successful", "0 derived",
)  # fmt: skip


def sentence(error: Any) -> str:
    """Returns the part of TensorFlow's message that a client understands.

    >>> sentence(ValueError("Graph execution error:\\n\\nDetected at node x\\nnot a picture\\n\\t [[{{node x}}]]"))
    'not a picture'
    """
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines()]
    kept = [line.split(" [[{{")[0].split("\t [[")[0].strip() for line in lines if line and not line.startswith(_NOISE)]
    text = " ".join(line for line in kept if line)
    if text.startswith("assertion failed: "):  # its parts stand in brackets
        text = text.removeprefix("assertion failed: ").replace("] [", " ").strip("[]")
    return text[:500] or type(error).__name__
