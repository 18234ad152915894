"""HTTP: TensorFlow Serving's REST interface, health, metrics and the page."""

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from dlkit.export.server import _body, _metrics, _page, _tensors
from dlkit.export.server._answer import Service, whole
from dlkit.export.server._errors import ServeError, invalid
from dlkit.export.server._loaded import PREDICT

log = logging.getLogger("dlkit.serve")
JSON = "application/json"
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+))?"
_VERB = re.compile(_MODEL + r":(?P<verb>predict|classify|regress)", re.IGNORECASE)
_STATUS = re.compile(_MODEL, re.IGNORECASE)
_METADATA = re.compile(_MODEL + r"/metadata", re.IGNORECASE)
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

Answer = tuple[int, str, bytes, Mapping[str, str]]


class Rest:
    """The answers to HTTP requests."""

    def __init__(self, service: Service):
        self._service, self._models = service, service.models

    async def answer(self, request: Any) -> Answer:
        """Returns status, type, body and headers for a request; every error is a JSON object with `error`."""
        try:
            return await self._route(request)
        except ServeError as error:
            more = {"Connection": "close"} if error.close else {}
            more |= {"Retry-After": "1"} if error.status == 503 else {}
            return error.status, JSON, _tensors.dumps({"error": error.message}), SAFE | more
        except _body.GoneError:
            return 400, JSON, b"", SAFE
        except Exception as error:  # a defect of ours must not end the server or show its inside to clients
            log.exception("a request failed")
            return 500, JSON, _tensors.dumps({"error": f"internal error: {type(error).__name__}"}), SAFE

    async def _route(self, request: Any) -> Answer:
        method = request.method
        path = request.scope.get("raw_path", b"").decode("ascii", "replace") or request.url.path
        if method == "POST":
            # the body is read before anything is judged: a client that is still sending does not listen
            with self._service.hold() as hold:
                body = await _body.read(request.receive, request.headers, self._service.options, hold)
                if (found := _VERB.fullmatch(path)) is not None:
                    name, verb = unquote(found["name"]), found["verb"].lower()
                    with self._service.counted(name, verb.capitalize(), "REST"):
                        return 200, JSON, await self._run(name, whole(found["version"]), verb, body), SAFE
        elif method in ("GET", "HEAD"):
            if (found := _METADATA.fullmatch(path)) is not None:
                return 200, JSON, self._metadata(unquote(found["name"]), whole(found["version"])), SAFE
            if (found := _STATUS.fullmatch(path)) is not None:
                return 200, JSON, self._status(unquote(found["name"]), whole(found["version"])), SAFE
            if path in _PATHS:
                return _PATHS[path](self)
        if path.lower().startswith("/v1/") or path in _PATHS:
            raise invalid(f"Malformed request: {method} {path[:200]}")
        raise ServeError("NOT_FOUND", f"nothing is at {path[:200]}; the models are under /v1/models/NAME, a page at /")

    async def _run(self, name: str, number: int | None, verb: str, body: bytes) -> bytes:
        with self._models.get(name, number).held() as version:
            if verb != "predict":
                self._refuse(version.loaded, verb, body)
            request = _tensors.parse(body, version.loaded.signature, self._service.options.max_queue)
            outputs = await self._service.predict(version, request.signature, request.inputs, float("inf"))
        return _tensors.encode(outputs, request.rows)

    @staticmethod
    def _refuse(loaded: Any, verb: str, body: bytes) -> None:
        """`classify` and `regress` ask for signatures of those kinds; a TensorFlow 2 SavedModel has none."""
        name = _tensors.parse_object(body).get("signature_name", "")
        method = loaded.signature(name if isinstance(name, str) else "").method
        kind = "classification" if verb == "classify" else "regression"
        if method == PREDICT:
            raise invalid(
                f"Expected {kind} signature method_name to be tensorflow/serving/{verb}. Was: {method}; use :predict"
            )
        raise ServeError("UNIMPLEMENTED", f"this server answers :predict; run TensorFlow Serving for :{verb}")

    def _status(self, name: str, number: int | None) -> bytes:
        return _tensors.dumps(
            {
                "model_version_status": [
                    {
                        "version": str(version),
                        "state": state.state,
                        "status": {"error_code": state.code, "error_message": state.message},
                    }
                    for version, state in self._models.states(name, number)
                ]
            }
        )

    def _metadata(self, name: str, number: int | None) -> bytes:
        from google.protobuf.json_format import MessageToDict

        version = self._models.get(name, number)
        plain = {
            key: MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for key, value in version.loaded.definitions.items()
        }
        return _tensors.dumps(
            {
                "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
                "metadata": {"signature_def": {"signature_def": plain}},
            }
        )

    def _health(self) -> Answer:
        serving = set(self._models.names())
        absent = [name for name in self._models.known() if name not in serving]
        ok = bool(serving) and not absent
        body = {"status": "ok" if ok else "degraded", "serving": sorted(serving), "not_serving": absent}
        return 200 if ok else 503, JSON, _tensors.dumps(body), SAFE

    def _numbers(self) -> Answer:
        return 200, "text/plain; version=0.0.4; charset=utf-8", self._service.metrics.page(), SAFE

    def _shown(self) -> Answer:
        models = []
        for name in self._models.names():
            with contextlib.suppress(ServeError):  # it may end meanwhile
                version = self._models.get(name)
                signature = version.loaded.signatures.get("serving_default")
                row = {"name": name, "version": str(version.number), "pictures": False, "outputs": []}
                if signature is not None:
                    row |= {"pictures": signature.pictures, "outputs": list(signature.outputs)}
                models.append(row)
        return 200, "text/html; charset=utf-8", _page.html(models), SAFE | {"Content-Security-Policy": _page.POLICY}


_PATHS: dict[str, Callable[[Rest], Answer]] = {
    "/": Rest._shown,
    "/healthz": Rest._health,
    "/health": Rest._health,
    _metrics.PATH: Rest._numbers,
}


def application(service: Service) -> Any:
    """Returns the ASGI application. Paths are matched above, as TensorFlow Serving matches them; no middleware."""
    from starlette.requests import Request
    from starlette.responses import Response

    rest = Rest(service)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        status, kind, body, headers = await rest.answer(Request(scope, receive))
        await Response(body, status, headers, kind)(scope, receive, send)

    return asgi
