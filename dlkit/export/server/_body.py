"""Request bodies within a size and a time, and the HTTP connections that bring them."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dlkit.export.server._answer import Hold
from dlkit.export.server._errors import ServeError, invalid, too_large
from dlkit.export.server._options import Options

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
HEAD = 64 * 1024  # bytes of a request's head
DRAINED = 4  # a body of up to so many times the limit is read and thrown away, so that its sender sees the answer


class GoneError(Exception):
    """The client closed the connection."""


async def read(receive: Receive, headers: Mapping[str, str], options: Options, hold: Hold) -> bytes:
    """Returns the body of a request.

    Raises:
        ServeError: too large (413), too slow (408), or not readable as its `Content-Encoding` says (400).
        GoneError: the client left.
    """
    declared = headers.get("content-length", "")
    length = int(declared) if declared.isdigit() and len(declared) < 19 else 0
    if length > options.max_body and ("expect" in headers or length > DRAINED * options.max_body):
        raise _over(options)
    kept, seen = bytearray(), 0
    try:
        async with asyncio.timeout(options.read_timeout):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                chunk, more = message.get("body", b""), message.get("more_body", False)
                seen += len(chunk)
                if seen <= options.max_body:
                    hold.add(len(chunk))
                    kept += chunk
                elif seen > DRAINED * options.max_body:
                    raise _over(options)
    except TimeoutError:
        raise ServeError(
            "DEADLINE_EXCEEDED", f"the request did not arrive within {options.read_timeout:g} s", 408, close=True
        ) from None
    if seen > options.max_body:
        raise _over(options)
    encoding = headers.get("content-encoding", "").lower()
    return bytes(kept) if encoding in ("", "identity") else _unpacked(kept, encoding, options, hold)


def _over(options: Options) -> ServeError:
    return too_large(f"the request is larger than {options.max_body:,} bytes, the limit of this server", close=True)


def _unpacked(body: bytearray, encoding: str, options: Options, hold: Hold) -> bytes:
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise invalid(f"Content-Encoding {encoding[:40]!r} is not known; expected gzip, deflate or none")
    unpack = zlib.decompressobj(wbits=47)
    try:
        content = unpack.decompress(body, options.max_body + 1)
    except zlib.error as error:
        raise invalid(f"the body is not {encoding}: {error}") from error
    if len(content) > options.max_body:
        raise too_large(f"the unpacked request is larger than {options.max_body:,} bytes, the limit of this server")
    if not unpack.eof:
        raise invalid(f"the {encoding} body is cut off")
    hold.add(len(content))
    return content


class _Joined:
    """A transport that sends what is written in one turn of the event loop at once: head and body in one packet."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            self._transport.write(b"".join(parts))


def protocol(options: Options) -> type:
    """Returns uvicorn's HTTP protocol with a limit on the time and size of a request's head, and on slow readers."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Patient(AutoHTTPProtocol):
        """Closes connections whose head does not arrive in time, or that do not take their answer."""

        _clock: asyncio.TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(_Joined(transport, self.loop))
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
                return
            self._head += len(data)
            if self._head > HEAD and not self.transport.is_closing():
                self.transport.abort()
            elif self._clock is None:
                self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop()
            self._clock = self.loop.call_later(options.read_timeout, self.transport.abort)

        def _stop(self) -> None:
            self._head = 0
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

    return Patient
