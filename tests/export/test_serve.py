"""The server as clients of TensorFlow Serving see it: bodies of its REST documentation, its protos, its errors."""

import base64
import contextlib
import gzip
import json
import shutil
import socket
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from serve_process import Server, b64, half_plus, png, save

for package in ("starlette", "uvicorn", "prometheus_client", "tensorflow_serving"):
    pytest.importorskip(package)

LABELS = ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")
HALF = "/v1/models/half_plus_three"


class Several(tf.Module):
    """Three inputs, as in the REST documentation, and outputs of every kind."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="tag"),
            tf.TensorSpec([None, 5], tf.int32, name="signal"),
            tf.TensorSpec([None, 2, 2], tf.float32, name="sensor"),
        ]
    )
    def call(self, tag, signal, sensor):
        return {
            "tag": tag,
            "sum": tf.reduce_sum(signal, 1),
            "sensor": sensor * 2.0,
            "tag_bytes": tag + b"\xff",
            "odd": signal % 2 == 1,
        }

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="a"), tf.TensorSpec([None], tf.int64, name="b")])
    def scalar(self, a, b):
        return {"total": a + tf.cast(tf.reduce_sum(b), tf.float32)}


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(exported.parent, folder / "animals", symlinks=True)
    half_plus(folder / "half_plus_three" / "00000123", 3)
    module = Several()
    save(folder / "several" / "1", module, {"serving_default": module.call, "scalar": module.scalar})
    with Server(folder, max_body=4 << 20, max_pixels=2_000_000, read_timeout=1.0, poll=0) as running:
        yield running


@pytest.fixture(scope="module")
def picture():
    return png(np.random.default_rng(0).integers(0, 255, (20, 30, 3)))


@pytest.fixture(scope="module")
def answers(exported, picture):
    """What the export answers when TensorFlow calls it."""
    found = tf.saved_model.load(str(exported)).signatures["serving_default"](image_bytes=tf.constant([picture]))
    return {name: value.numpy() for name, value in found.items()}


def test_the_example_of_the_rest_documentation_answers_as_it_says(server):
    assert server.predict("half_plus_three", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})
    status, answer = server.json("GET", HALF)
    ok = {"error_code": "OK", "error_message": ""}
    assert (status, answer) == (
        200,
        {"model_version_status": [{"version": "123", "state": "AVAILABLE", "status": ok}]},
    )
    status, headers, content = server.ask("POST", "/v1/models/half:predict", {"instances": [1.0, 5.0]})
    assert (status, headers["content-type"]) == (404, "application/json")
    assert json.loads(content) == {"error": "Servable not found for request: Latest(half)"}


SIGNALS, SENSORS = [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]], [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]


def test_rows_and_columns_of_the_documentation_give_rows_and_columns(server):
    rows = [
        {"tag": tag, "signal": signal, "sensor": sensor}
        for tag, signal, sensor in zip(("foo", "bar"), SIGNALS, SENSORS, strict=True)
    ]
    status, answer = server.predict("several", {"signature_name": "serving_default", "instances": rows})
    assert status == 200
    assert answer["predictions"][1] == {
        "tag": "bar",
        "sum": 15,
        "sensor": [[8.0, 10.0], [12.0, 16.0]],
        "tag_bytes": {"b64": base64.b64encode(b"bar\xff").decode()},
        "odd": [True, False, True, False, True],
    }
    columns = {"tag": ["foo", "bar"], "signal": SIGNALS, "sensor": SENSORS}
    status, answer = server.predict("several", {"inputs": columns})
    assert status == 200
    assert answer["outputs"]["sum"] == [15, 15]
    assert answer["outputs"]["tag"] == ["foo", "bar"]


def test_inputs_without_a_common_first_axis_come_in_columns_and_a_single_output_loses_its_name(server):
    body = {"signature_name": "scalar", "inputs": {"a": 1.5, "b": [1, 2, 3]}}
    assert server.predict("several", body) == (200, {"outputs": 7.5})
    assert server.predict("half_plus_three", {"inputs": [1.0]}) == (200, {"outputs": [3.5]})
    assert server.predict("half_plus_three", {"inputs": {"x": [1.0]}}) == (200, {"outputs": [3.5]})


def test_not_a_number_and_infinity_go_in_and_out(server):
    status, answer = server.predict("half_plus_three", b'{"instances": [NaN, Infinity, -Infinity, 1e2]}')
    assert status == 200
    np.testing.assert_array_equal(answer["predictions"], [np.nan, np.inf, -np.inf, 53.0])


def test_a_picture_in_base64_gets_the_classes_of_the_export(server, picture, answers):
    status, answer = server.predict("animals", {"instances": [b64(picture)]})
    named = server.predict("animals", {"instances": [{"image_bytes": b64(picture)}] * 2}, version=1)[1]
    assert status == 200
    assert answer["predictions"][0]["classes"] == [name.decode() for name in answers["classes"][0]]
    np.testing.assert_allclose(answer["predictions"][0]["probabilities"], answers["probabilities"][0], atol=1e-6)
    assert len(named["predictions"]) == 2
    np.testing.assert_allclose(named["predictions"][1]["logits"], answers["logits"][0], atol=1e-5)
    pixels = np.asarray(tf.io.decode_png(picture)).tolist()
    status, answer = server.predict("animals", {"signature_name": "images", "instances": [pixels]})
    np.testing.assert_allclose(answer["predictions"][0]["logits"], answers["logits"][0], atol=1e-5)


def test_a_request_larger_than_a_batch_is_split_and_answered_in_order(server):
    values = list(range(700))
    assert server.predict("half_plus_three", {"instances": values})[1]["predictions"] == [v / 2 + 3 for v in values]


def test_a_zipped_body_is_unpacked(server):
    body = gzip.compress(b'{"instances": [1.0]}')
    headers = {"Content-Encoding": "gzip"}
    assert server.predict("half_plus_three", body, headers=headers) == (200, {"predictions": [3.5]})
    assert server.predict("half_plus_three", body[:-9], headers=headers)[0] == 400
    bomb = gzip.compress(b'{"instances": [' + b"1," * (4 << 20) + b"1]}")
    assert server.predict("half_plus_three", bomb, headers=headers)[0] == 413


WRONG = {
    "no JSON": (b"{", 400, "JSON Parse error"),
    "no UTF-8": (b'{"instances": ["\xff"]}', 400, "JSON Parse error"),
    "nested too deep": (b"[" * 100_000, 400, "JSON Parse error"),
    "a list": ([1], 400, "the body is a list"),
    "neither": ({"instance": [1]}, 400, "neither 'instances' nor 'inputs'"),
    "both": ({"instances": [1], "inputs": [1]}, 400, "both 'instances' and 'inputs'"),
    "no rows": ({"instances": []}, 400, "no values in 'instances'"),
    "instances is no list": ({"instances": 1.0}, 400, "'instances' is a number"),
    "a string for a number": ({"instances": ["1.0"]}, 400, "expected float32"),
    "ragged": ({"instances": [[1.0], 2.0]}, 400, "no regular array"),
    "a level too deep": ({"instances": [[1.0]]}, 400, "has the shape (1, 1); expected (any)"),
    "another name": ({"inputs": {"z": [1.0]}}, 400, "'inputs' has ['z']; expected ['x']"),
    "beyond float32": (b'{"instances": [1e300]}', 400, "beyond float32"),
    "null": ({"instances": [None]}, 400, "has null"),
    "true": ({"instances": [True]}, 400, "has true or false"),
    "an unknown signature": ({"signature_name": "x", "instances": [1]}, 400, 'signature name: "x" not found'),
    "a number as signature": ({"signature_name": 1, "instances": [1]}, 400, "expected a string"),
    "too many rows": ({"instances": [1.0] * 2000}, 400, "at most 1024"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_body_gets_the_reason_as_json(case, server):
    body, status, reason = WRONG[case]
    found, answer = server.predict("half_plus_three", body)
    assert (found, list(answer)) == (status, ["error"])
    assert reason in answer["error"]


def bomb(side):
    """A PNG of side x side pixels that takes few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_wrong_picture_gets_the_reason_and_its_neighbours_their_answers(server, picture):
    for content in (b"", b"no picture", picture[: len(picture) // 2], picture[:20]):
        status, answer = server.predict("animals", {"instances": [b64(content)]})
        assert (status, list(answer)) == (400, ["error"])
    status, answer = server.predict("animals", {"instances": [{"b64": "!!!"}]})
    assert (status, "not base64" in answer["error"]) == (400, True)
    status, answer = server.predict("animals", {"signature_name": "tolerant", "instances": [b64(b"x"), b64(picture)]})
    assert status == 200
    assert [bool(row["error"]) for row in answer["predictions"]] == [True, False]


def test_a_picture_of_a_hundred_megapixels_is_refused_at_once_wherever_it_hides(server):
    content = bomb(10_000)
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(content)
    before = server.memory()
    bodies = {"serving_default": content, "tolerant": content, "tf_example": example.SerializeToString()}
    for signature, value in bodies.items():
        started = time.monotonic()
        status, answer = server.predict("animals", {"signature_name": signature, "instances": [b64(value)]})
        assert (status, "100,000,000 pixels" in answer["error"]) == (413, True)
        assert time.monotonic() - started < 1
    assert server.memory() - before < 50 << 20


PATHS = {
    ("GET", "/v1/models/nothing"): 404,
    ("GET", "/v1/models/animals/versions/7"): 404,
    ("POST", "/v1/models/animals/versions/7:predict"): 404,
    ("POST", "/v1/models/animals/versions/99999999999999999999999:predict"): 400,
    ("GET", "/v1/models/animals:predict"): 400,
    ("POST", "/v1/models/animals"): 400,
    ("POST", "/v1/models/animals:explain"): 400,
    ("DELETE", "/v1/models/animals"): 400,
    ("OPTIONS", "/v1/models/animals:predict"): 400,
    ("OPTIONS", "*"): 404,
    ("GET", "/v1/models"): 400,
    ("GET", "/v1/models/..%2f..%2fetc"): 404,
    ("GET", "/elsewhere"): 404,
    ("POST", "/elsewhere"): 404,
    ("POST", "/v1/models/animals:classify"): 400,
}


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_wrong_paths_and_methods_get_their_codes(method, path, server):
    status, answer = server.json(method, path, b"{}" if method == "POST" else None)
    assert (status, list(answer)) == (PATHS[method, path], ["error"])


def test_metadata_has_the_signatures_as_the_file_states_them(server):
    status, answer = server.json("GET", "/v1/models/animals/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "animals", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "tolerant", "images", "tensors", "tf_example", "features"}
    found = signatures["serving_default"]["inputs"]["image_bytes"]
    assert found["dtype"] == "DT_STRING"
    assert found["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"


def test_health_and_metrics_tell_the_state(server):
    status, health = server.json("GET", "/healthz")
    assert (status, health["status"]) == (200, "ok")
    assert health["serving"] == ["animals", "half_plus_three", "several"]
    server.predict("half_plus_three", {"instances": [1.0]})
    server.predict("a-name-of-the-caller", {"instances": [1.0]})
    status, headers, content = server.ask("GET", "/monitoring/prometheus/metrics")
    text = content.decode()
    assert headers["content-type"].startswith("text/plain")
    counted = ':tensorflow:serving:request_count{model_name="half_plus_three",status="OK"}'
    assert float(text.split(counted)[1].split()[0]) >= 1
    assert ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST"' in text
    assert 'dlkit_serve_version{model="animals",version="1"} 1.0' in text
    assert "a-name-of-the-caller" not in text


def test_a_body_over_the_limit_is_refused_also_before_it_was_sent(server):
    status, answer = server.predict("half_plus_three", b" " * (5 << 20))
    assert (status, "limit of this server" in answer["error"]) == (413, True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/models/half_plus_three:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/models/half", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    ids=["nothing", "half a line", "half a head"],
)
def test_a_client_that_sends_its_head_slowly_is_cut_off(sent, server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
        assert 0.5 < time.monotonic() - started < 3


def test_a_client_that_trickles_its_body_gets_408(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/models/half_plus_three:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        )
        started = time.monotonic()
        answer = connection.recv(1000)
        assert 0.5 < time.monotonic() - started < 3
        assert answer.startswith(b"HTTP/1.1 408")
        assert connection.recv(1000) == b"" or b"error" in answer


def test_requests_sent_without_waiting_are_answered_in_order(server):
    def request(value):
        body = b'{"instances": [%d]}' % value
        return b"POST %s:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (HALF.encode(), len(body), body)

    wanted = [b'{"predictions":[%.1f]}' % (value / 2 + 3) for value in range(0, 40, 2)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"".join(map(request, range(0, 40, 2))))
        answer = b""
        while wanted[-1] not in answer:
            answer += connection.recv(65536)
    places = [answer.index(one) for one in wanted]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200") == 20


def test_a_head_has_the_status_and_no_body(server):
    assert server.ask("HEAD", "/healthz")[::2] == (200, b"")
    assert server.ask("HEAD", "/v1/models/nothing")[::2] == (404, b"")


def test_bytes_that_are_no_http_do_not_harm(server):
    for content in (b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 5000, b"GET /" + b"a" * 200_000):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
            connection.sendall(content)
            connection.recv(100)
    assert server.json("GET", "/healthz")[0] == 200


# --- gRPC ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rpc(server):
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield prediction, model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(name, signature="", version=None, **inputs):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value))
    return request


def test_a_client_by_the_protos_gets_tensors(rpc, picture, answers):
    response = rpc[0].Predict(predict_request("animals", image_bytes=[picture, picture]), timeout=20)
    assert response.model_spec.name == "animals"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    found = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    np.testing.assert_allclose(found["logits"], np.repeat(answers["logits"], 2, 0), atol=1e-5)
    assert found["classes"].tolist() == np.repeat(answers["classes"], 2, 0).tolist()
    request = predict_request("animals", image_bytes=[picture])
    request.output_filter.append("scores")
    assert set(rpc[0].Predict(request, timeout=20).outputs) == {"scores"}


def splat():
    """One value that stands for ten thousand million."""
    proto = tf.make_tensor_proto([1.0])
    proto.tensor_shape.dim[0].size = 10_000_000_000
    return proto


FAULTS = {
    "unknown model": (lambda picture: predict_request("nothing", x=[1.0]), "NOT_FOUND"),
    "unknown version": (lambda picture: predict_request("half_plus_three", version=5, x=[1.0]), "NOT_FOUND"),
    "no name": (lambda picture: predict_request("", x=[1.0]), "INVALID_ARGUMENT"),
    "unknown signature": (lambda picture: predict_request("animals", "z", image_bytes=[b""]), "FAILED_PRECONDITION"),
    "another input": (lambda picture: predict_request("half_plus_three", y=[1.0]), "INVALID_ARGUMENT"),
    "another type": (lambda picture: predict_request("half_plus_three", x=[1]), "INVALID_ARGUMENT"),
    "another shape": (lambda picture: predict_request("half_plus_three", x=[[1.0]]), "INVALID_ARGUMENT"),
    "a huge shape": (lambda picture: predict_request("half_plus_three", x=splat()), "INVALID_ARGUMENT"),
    "half a picture": (lambda picture: predict_request("animals", image_bytes=[picture[:90]]), "INVALID_ARGUMENT"),
    "a bomb": (lambda picture: predict_request("animals", image_bytes=[bomb(10_000)]), "INVALID_ARGUMENT"),
    "too many bytes": (lambda picture: predict_request("animals", image_bytes=[bytes(5 << 20)]), "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_grpc_request_gets_its_code(fault, rpc, picture):
    import grpc

    make, code = FAULTS[fault]
    with pytest.raises(grpc.RpcError) as caught:
        rpc[0].Predict(make(picture), timeout=20)
    assert caught.value.code() == grpc.StatusCode[code]


def test_grpc_tells_metadata_and_states(rpc):
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half_plus_three"
    response = rpc[0].GetModelMetadata(request, timeout=20)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(definitions)
    assert list(definitions.signature_def["serving_default"].inputs) == ["x"]
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "half_plus_three"
    (row,) = rpc[1].GetModelStatus(status, timeout=20).model_version_status
    assert (row.version, row.state) == (123, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
