"""One prediction from inputs to outputs, the same for HTTP and gRPC."""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from dlkit.export.server import _pictures
from dlkit.export.server._errors import ServeError
from dlkit.export.server._loaded import Arrays, Signature
from dlkit.export.server._metrics import Metrics
from dlkit.export.server._models import Models, Version
from dlkit.export.server._options import Options


class Service:
    """What both interfaces stand on: the models, the limits and the counters."""

    def __init__(self, options: Options, models: Models, metrics: Metrics):
        self.options, self.models, self.metrics = options, models, metrics
        self._held = 0

    async def predict(self, version: Version, signature: Signature, inputs: Arrays, timeout: float) -> Arrays:
        """Runs a signature behind the version's queue.

        Raises:
            ServeError: a picture is too large (413), the queue is full (503), time is up (504), the model refused.
        """
        costs = self._costs(signature, inputs)
        try:
            async with asyncio.timeout(min(timeout, self.options.timeout)):
                return await version.batcher.submit(signature, inputs, costs)
        except TimeoutError:
            raise ServeError(
                "DEADLINE_EXCEEDED", f"no answer within {min(timeout, self.options.timeout):g} s"
            ) from None

    def _costs(self, signature: Signature, inputs: Arrays) -> list[int] | None:
        """The pixels that each row will be decoded to; None where nothing is decoded."""
        total: list[int] | None = None
        for value in inputs.values():
            if value.dtype == object:
                found = _pictures.check(value.reshape(-1), self.options.max_pixels)
            elif value.ndim == 4 and value.dtype.itemsize == 1:
                found = [math.prod(value.shape[1:3])] * len(value)
            else:
                continue
            if signature.batched and value.ndim > 1 and value.dtype == object:
                found = [sum(found)] * len(value)
            total = found if total is None else [a + b for a, b in zip(total, found, strict=False)]
        return total

    @contextlib.contextmanager
    def hold(self) -> Iterator["Hold"]:
        """Accounts for the bytes of one request while it is worked on."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.release(hold)

    def take(self, hold: "Hold", count: int) -> None:
        """Adds bytes to what a request holds.

        Raises:
            ServeError: all requests together would hold more than `max_held` (503).
        """
        if self._held + count > self.options.max_held:
            raise ServeError(
                "UNAVAILABLE", f"the requests in work hold {self._held:,} bytes; try again in a moment", close=True
            )
        self._held += count
        hold.count += count
        self.metrics.held.set(self._held)

    def release(self, hold: "Hold") -> None:
        """Gives back what a request held."""
        self._held -= hold.count
        hold.count = 0
        self.metrics.held.set(self._held)

    @contextlib.contextmanager
    def counted(self, name: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts a request with its code and its time."""
        started, code = time.perf_counter(), "INTERNAL"
        try:
            yield
            code = "OK"
        except ServeError as error:
            code = error.code
            raise
        finally:
            known = name if name in self.models else "(unknown)"
            self.metrics.request(known, api, entrypoint, code, time.perf_counter() - started)


class Hold:
    """The bytes that one request holds."""

    def __init__(self, service: Service):
        self._service, self.count = service, 0

    def add(self, count: int) -> None:
        """Takes more; refused with 503 when the server holds too much."""
        self._service.take(self, count)


def whole(value: Any) -> int | None:
    """Returns a version number of a path; None for an empty one.

    Raises:
        ServeError: it does not fit 64 bits.
    """
    if value in (None, ""):
        return None
    if len(value) > 18:
        raise ServeError("INVALID_ARGUMENT", f"Failed to convert version: {value[:40]} to numeric.")
    return int(value)
