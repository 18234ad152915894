"""Warm-up requests for TensorFlow Serving, written as protocol buffers by hand: no serving package is needed.

The file holds one TFRecord per request, each a `tensorflow.serving.PredictionLog`:

    PredictionLog.predict_log = 6 -> PredictLog.request = 1 -> PredictRequest
    PredictRequest: model_spec = 1 (signature_name = 3), inputs = 2 (map<string, TensorProto>)
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import tensorflow as tf


def write_requests(path: Path, requests: Iterable[tuple[str, Mapping[str, tf.Tensor]]]) -> None:
    """Writes (signature name, inputs) pairs as the server's `tf_serving_warmup_requests` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(prediction_log(signature, inputs))


def prediction_log(signature: str, inputs: Mapping[str, tf.Tensor]) -> bytes:
    """Encodes one PredictionLog with a PredictRequest for `signature`."""
    spec = _field(3, signature.encode())
    request = _field(1, spec)
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field: key (number and wire type 2), length, content."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
