"""The local server behind `dlkit.export.serve`: TensorFlow Serving's interfaces on one machine.

_options   what can be set, and its limits         _errors   one error with its HTTP and gRPC code
_scan      which models and versions are on disk   _loaded   one version in memory, checked and warmed up
_models    versions taken over and drained         _probe    tries a version in a process of its own
_batching  requests that arrive together run once  _pictures pixels of a picture by its header
_tensors   JSON to arrays and back                 _answer   one prediction, whichever way it came
_rest      paths and answers of HTTP               _body     request bodies within size and time
_rpc       the gRPC services                       _page     the page for people
_metrics   what Prometheus reads                   _run      start, signals, graceful end
"""

from dlkit.export.server._options import Options

__all__ = ["Options"]
