"""Starts the server and ends it gracefully."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dlkit._errors import InputError
from dlkit.export.server import _lean
from dlkit.export.server._options import Options
from dlkit.export.server._scan import Layout

log = logging.getLogger("dlkit.serve")


def run(options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C; running requests are finished first.

    Raises:
        InputError: a port is in use, or no version of any model could be loaded.
    """
    started = time.monotonic()
    Layout(options.directory)  # nothing to serve is said before anything slow is done
    with _listening(options) as listener, _logged():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _lean.without_keras():
            import tensorflow  # noqa: F401
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(options, listener, started))


async def _serve(options: Options, listener: socket.socket, started: float) -> None:
    from dlkit.export.server import _rest, _rpc
    from dlkit.export.server._answer import Service
    from dlkit.export.server._loaded import RefusedError
    from dlkit.export.server._metrics import Metrics
    from dlkit.export.server._models import Models

    metrics = Metrics()
    models = Models(options, metrics)
    service = Service(options, models, metrics)
    try:
        await models.start()
    except RefusedError as error:
        raise InputError(f"{options.directory}: nothing can be served: {error}") from error
    server = _server(_rest.application(service), options)
    rpc, rpc_port = None, None
    if options.grpc_port is not None:
        try:
            rpc, rpc_port = await _rpc.start(service, options.host, options.grpc_port)
        except OSError as error:
            raise InputError(f"{error}: the port is in use; choose another with grpc_port, or None for none") from error
    watcher = asyncio.create_task(models.watch()) if options.poll else None
    host, port = listener.getsockname()[:2]

    def ready() -> None:
        log.info(
            "ready after %.1f s: http://%s:%d/%s; %s; stop with Ctrl-C",
            time.monotonic() - started, f"[{host}]" if ":" in host else host, port,
            "" if rpc_port is None else f", gRPC on port {rpc_port}", ", ".join(models.names()),
        )  # fmt: skip

    server.when_ready = ready
    with _signals(server):
        await server.serve(sockets=[listener])
    log.info("ending: running requests are finished first")
    if watcher is not None:
        watcher.cancel()
    if rpc is not None:
        await rpc.stop(options.grace)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(models.close(), options.grace)
    log.info("ended")


def _server(application: Any, options: Options) -> Any:
    import uvicorn

    from dlkit.export.server import _body

    class Server(uvicorn.Server):
        """Says when it listens, and leaves signals to us: uvicorn raises them again when it is done."""

        when_ready: Callable[[], None]

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.when_ready()

        def capture_signals(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    config = uvicorn.Config(
        application, http=_body.protocol(options), ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=75, limit_concurrency=options.max_connections,
        timeout_graceful_shutdown=max(1, round(options.grace)), backlog=1024,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients' mistakes are answered, not logged
    return Server(config)


@contextlib.contextmanager
def _signals(server: Any) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server; a second one does not wait for running requests."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    with contextlib.suppress(NotImplementedError):  # where loops take no signals, Ctrl-C still raises
        for number in numbers:
            loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in numbers:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _listening(options: Options) -> Iterator[socket.socket]:
    """The bound socket, before anything slow is done: a port in use is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"host {options.host!r} cannot be listened on: {error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise InputError(
                f"{options.host}:{options.port} cannot be listened on: {error.strerror}; choose another port"
            ) from error
        yield listener


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Shows our log lines on standard error, unless the caller has set up logging."""
    if log.handlers or logging.getLogger().handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
