"""`predict` and the warm-up requests use an export as a server does."""

import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.export import _warmup, predict
from dlkit.export._pictures import pictures


@pytest.fixture
def files(tmp_path):
    """A PNG, a JPEG and a text file that calls itself one."""
    samples = pictures(12, 12)
    for name in ("png", "jpeg"):
        (tmp_path / f"a.{name}").write_bytes(samples[name])
    (tmp_path / "text.jpg").write_text("no picture")
    return tmp_path


def test_files_get_their_names_and_probabilities_in_order(exported, files, tiny, preprocess):
    rows = predict(exported.parent, [files / "a.png", files / "a.jpeg"], top=2)
    assert [row.file for row in rows] == [str(files / "a.png"), str(files / "a.jpeg")]
    contents = tf.constant([(files / name).read_bytes() for name in ("a.png", "a.jpeg")])
    expected = tf.nn.softmax(tiny()(preprocess.from_bytes(contents), training=False)).numpy()
    for row, probabilities in zip(rows, expected, strict=True):
        assert len(row.classes) == len(row.scores) == 2
        assert row.score == pytest.approx(probabilities.max(), abs=1e-5)
        assert row.label == ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")[probabilities.argmax()]


def test_a_file_that_cannot_be_classified_is_named(exported, files):
    with pytest.raises(InputError, match=r"text\.jpg: this file cannot be decoded as JPEG, PNG, BMP, GIF or WebP"):
        predict(exported, [files / "a.png", files / "text.jpg"])
    with pytest.raises(InputError, match=r"missing\.png cannot be read: No such file"):
        predict(exported, [files / "missing.png"])
    with pytest.raises(InputError, match="no files to classify"):
        predict(exported, [])
    with pytest.raises(InputError, match=r"missing\.png cannot be read: No such file"):
        predict(exported, str(files / "missing.png"))
    for top in (0, 6, 1.5):
        with pytest.raises(InputError, match="expected a whole number from 1 to 5"):
            predict(exported, [files / "a.png"], top=top)


def fields(content):
    """Parses one level of a protocol buffer whose fields are all length-delimited: [(number, bytes)]."""
    found, at = [], 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(content):
        key = varint()
        assert key & 7 == 2
        size = varint()
        found.append((key >> 3, content[at : at + size]))
        at += size
    return found


def requests(path):
    """Yields (signature name, inputs) from a warm-up file, by the numbers of TensorFlow Serving's protos."""
    from tensorflow.core.framework import tensor_pb2

    for record in tf.data.TFRecordDataset(str(path)):
        ((kind, log),) = fields(record.numpy())
        ((one, request),) = fields(log)
        assert (kind, one) == (6, 1)
        parts = fields(request)
        ((signature_name, name),) = fields(next(value for number, value in parts if number == 1))
        assert signature_name == 3
        inputs = {}
        for entry in (dict(fields(value)) for number, value in parts if number == 2):
            proto = tensor_pb2.TensorProto()
            proto.ParseFromString(entry[2])
            inputs[entry[1].decode()] = tf.make_ndarray(proto)
        yield name.decode(), inputs


def test_the_warm_up_requests_replay_through_every_signature(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    replayed = {}
    for name, inputs in requests(exported / "assets.extra/tf_serving_warmup_requests"):
        replayed[name] = signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    assert set(replayed) == set(signatures)
    np.testing.assert_allclose(replayed["images"]["logits"], replayed["serving_default"]["logits"], atol=1e-5)


def test_the_warm_up_requests_are_prediction_logs_of_tensorflow_serving():
    log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    parsed = log.PredictionLog.FromString(
        _warmup.prediction_log("images", {"images": tf.ones([1, 2, 300, 3], tf.uint8)})
    )
    assert parsed.predict_log.request.model_spec.signature_name == "images"
    assert parsed.predict_log.request.inputs["images"].tensor_shape.dim[2].size == 300


def test_every_generated_picture_is_decoded_by_pillow_to_the_pixels_of_the_preprocess():
    image = pytest.importorskip("PIL.Image")
    import io

    from dlkit.data import Preprocess

    for name, content in pictures(16, 16).items():
        opened = image.open(io.BytesIO(content))
        found = Preprocess(16).read(tf.constant(content)).numpy()
        size = opened.size[::-1] if name == "jpeg_exif_rotated" else opened.size
        assert found.shape == (size[1], size[0], 3), name
        if name in ("png", "jpeg", "jpeg_grey", "png_grey", "bmp", "gif", "webp_lossless"):
            np.testing.assert_array_equal(found, np.asarray(opened.convert("RGB")), err_msg=name)
