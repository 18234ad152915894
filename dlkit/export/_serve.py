"""The public `serve`: arguments checked before anything heavy is imported, then the server."""

import os
from typing import Any

from dlkit.export.server._options import Options


def serve(
    directory: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int | None = 8500,
    **options: Any,
) -> None:
    """Serves exports over HTTP and gRPC as TensorFlow Serving does, until Ctrl-C or SIGTERM.

    The REST paths and JSON, the gRPC `PredictionService` and `ModelService` and the port numbers are TensorFlow
    Serving's, so its clients work unchanged. Requests that arrive together run as one batch. A version that appears
    in the folder is tried in a process of its own, loaded and warmed up before it takes over; the old one finishes
    what it began. A version that fails is refused with its reason and the old one keeps serving. `/` is a page where
    a person drops a picture and sees its classes.

    Use it on one machine, for trying and for small services; on many machines run TensorFlow Serving itself
    (docs/serving.md). **Loading a SavedModel runs what is in it: serve only what you trust.**

    Args:
        directory: a folder of models (`NAME/VERSION`), one model (`VERSION` folders), or one version.
        host: address to listen on. The default is this machine only; there is no password and no encryption.
        port: of HTTP; 0 takes a free one.
        grpc_port: of gRPC; 0 takes a free one, None switches gRPC off.
        options: fields of `dlkit.export.server.Options`: batching, limits, timeouts. Their defaults suit pictures.

    Raises:
        InputError: nothing to serve in `directory`, a value out of range, a port in use, or the extra is missing:
            pip install "dlkit[serve]".

    Example:
        >>> serve("saved_models", port=8501, max_batch=64)  # doctest: +SKIP
    """
    checked = Options.of(directory, host=host, port=port, grpc_port=grpc_port, **options)
    from dlkit.export.server._run import run

    run(checked)
