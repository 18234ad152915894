"""gRPC: TensorFlow Serving's PredictionService and ModelService by its protos."""

import logging
import math
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit.export.server import _tensors
from dlkit.export.server._answer import Service
from dlkit.export.server._errors import ServeError, invalid
from dlkit.export.server._loaded import Arrays, Signature
from dlkit.export.server._models import Version

log = logging.getLogger("dlkit.serve")


async def start(service: Service, host: str, port: int) -> tuple[Any, int]:
    """Returns a running gRPC server and its port.

    Raises:
        OSError: the port is taken.
    """
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    options = service.options
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", options.max_body)],
        maximum_concurrent_rpcs=options.max_connections,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(service), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address} for gRPC") from error
    if not bound:
        raise OSError(f"cannot listen on {address} for gRPC")
    await server.start()
    return server, bound


class _Prediction:
    """`PredictionService`: Predict and GetModelMetadata; the methods for TensorFlow 1 signatures are refused."""

    def __init__(self, service: Service):
        from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

        self._service = service
        self._predicted, self._metadata = predict_pb2.PredictResponse, get_model_metadata_pb2

    async def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802  (the name of the proto)
        """Answers a PredictRequest."""
        try:
            with (
                self._service.hold() as hold,
                self._service.counted(request.model_spec.name, "Predict", "GRPC"),
            ):
                hold.add(request.ByteSize())
                with _version(self._service, request.model_spec).held() as version:
                    left = context.time_remaining()
                    return await self._predict(request, version, math.inf if left is None else left)
        except ServeError as error:
            return await _abort(context, error)

    async def _predict(self, request: Any, version: Version, left: float) -> Any:
        name = request.model_spec.signature_name or "serving_default"
        if name not in version.loaded.signatures:
            raise ServeError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        signature = version.loaded.signatures[name]
        wanted = list(request.output_filter) or list(signature.outputs)
        for output in wanted:
            if output not in signature.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {output}; it has {sorted(signature.outputs)}"
                )
        inputs = _arrays(request.inputs, signature, self._service.options.max_body)
        outputs = await self._service.predict(version, signature, inputs, left)
        response = self._predicted()
        response.model_spec.name, response.model_spec.signature_name = version.name, name
        response.model_spec.version.value = version.number
        for output in wanted:
            response.outputs[output].CopyFrom(tf.make_tensor_proto(outputs[output]))
        return response

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers the signature definitions."""
        try:
            version = _version(self._service, request.model_spec)
            for field in request.metadata_field:
                if field != "signature_def":
                    raise invalid(f"Metadata field {field} is not supported")
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        except ServeError as error:
            return await _abort(context, error)
        response = self._metadata.GetModelMetadataResponse()
        response.model_spec.name, response.model_spec.version.value = version.name, version.number
        definitions = self._metadata.SignatureDefMap()
        for name, value in version.loaded.definitions.items():
            definitions.signature_def[name].CopyFrom(value)
        response.metadata["signature_def"].Pack(definitions)
        return response

    async def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        """RefusedError: TensorFlow 2 SavedModels have no such signatures."""
        return await _abort(context, ServeError("UNIMPLEMENTED", "this server answers Predict"))

    Regress = MultiInference = Classify


class _Status:
    """`ModelService`: GetModelStatus."""

    def __init__(self, service: Service):
        self._models = service.models

    async def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers the states of a model's versions."""
        from tensorflow_serving.apis import get_model_status_pb2

        spec = request.model_spec
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus.State
        try:
            number = spec.version.value if spec.HasField("version") else None
            for version, state in self._models.states(_name(spec), number):
                row = response.model_version_status.add(version=version, state=states.Value(state.state))
                row.status.error_code = tf.errors.FAILED_PRECONDITION if state.message else 0
                row.status.error_message = state.message
        except ServeError as error:
            return await _abort(context, error)
        return response

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:  # noqa: N802
        """RefusedError: the folder decides what is served."""
        return await _abort(context, ServeError("UNIMPLEMENTED", "this server serves what its folder holds"))


def _name(spec: Any) -> str:
    if not spec.name:
        raise invalid("Missing ModelSpec")
    return spec.name


def _version(service: Service, spec: Any) -> Version:
    if spec.HasField("version_label"):
        raise invalid(f"Unrecognized servable version label: {spec.version_label}; this server knows numbers only")
    return service.models.get(_name(spec), spec.version.value if spec.HasField("version") else None)


def _arrays(given: Any, signature: Signature, limit: int) -> Arrays:
    if set(given) != set(signature.inputs):
        raise invalid(f"input tensors are {sorted(given)}; expected {sorted(signature.inputs)}")
    inputs = {}
    for name, spec in signature.inputs.items():
        proto = given[name]
        if proto.dtype != spec.dtype.as_datatype_enum:
            found = tf.dtypes.as_dtype(proto.dtype).name if proto.dtype else "no type"
            raise invalid(f"input '{name}' is {found}; expected {spec.dtype.name}")
        sides = [side.size for side in proto.tensor_shape.dim]
        # one value may stand for a whole tensor, so its size is judged before it is made
        if min(sides, default=0) < 0 or math.prod(sides) * max(spec.dtype.size or 8, 1) > max(limit, 64):
            raise invalid(f"input '{name}' has the shape {sides}, more than this server takes")
        try:
            value = np.asarray(tf.make_ndarray(proto))
        except (ValueError, TypeError) as error:
            raise invalid(f"input '{name}' is no tensor: {error}") from error
        _tensors.check_shape(value, spec, name)
        inputs[name] = value
    return inputs


async def _abort(context: Any, error: ServeError) -> Any:
    import grpc

    await context.abort(grpc.StatusCode[error.code], error.message)
