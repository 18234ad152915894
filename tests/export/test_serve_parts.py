"""The parts of the server on their own: pictures' headers, batches, folders, options, the page, the command line."""

import asyncio
import errno
import struct
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.cli import main
from dlkit.export import serve, server
from dlkit.export._pictures import pictures
from dlkit.export.server import Options, _page, _pictures, _rpc, _tensors
from dlkit.export.server import _models as models_
from dlkit.export.server._answer import Service
from dlkit.export.server._batching import Batcher
from dlkit.export.server._errors import ServeError, sentence
from dlkit.export.server._loaded import RefusedError, Signature
from dlkit.export.server._metrics import Metrics
from dlkit.export.server._scan import Layout


@pytest.mark.parametrize("name", sorted(pictures(23, 17)))
def test_the_pixels_of_every_format_are_read_without_decoding(name):
    content = pictures(23, 17)[name]
    decoded = tf.io.decode_image(content, expand_animations=False) if "webp" not in name else np.zeros((17, 23, 3))
    found = _pictures.pixels(content)
    assert found >= int(np.prod(decoded.shape[:2]))
    assert found <= 2 * int(np.prod(decoded.shape[:2]))  # a GIF counts its canvas and its frame


def test_every_frame_of_a_gif_counts_and_every_chunk_of_a_webp():
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 3000, 2000, 0) + b"\x02\x02\x4c\x01\x00"
    gif = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"\x21\xf9\x04\x00\x00\x00\x00\x00" + 5 * frame + b";"
    assert _pictures.pixels(gif) == 1 + 5 * 6_000_000
    assert _pictures.pixels(gif[:60]) == 1 + 2 * 6_000_000
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\x09\x00\x00\x09\x00\x00"
    picture = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", 9_999 | 9_999 << 14) + b"\x00"
    webp = b"RIFF" + struct.pack("<I", 100) + b"WEBP" + canvas + picture
    assert _pictures.pixels(webp) == 10_000**2


PARTS = {
    "JPEG": b"\xff\xd8\xff" + b"\xd0\xff" * 4_000_000,
    "JPEG, all fill": b"\xff\xd8" + b"\xff" * 8_000_000,
    "GIF": b"GIF89a" + bytes(7) + b"\x21\xf9" + b"\x01\x00" * 4_000_000,
    "WebP": b"RIFF\0\0\0\0WEBP" + b"ABCD\0\0\0\0" * 1_000_000,
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_file_that_is_all_headers_does_not_hold_up_the_others(kind):
    started = time.monotonic()
    if kind == "JPEG, all fill":
        assert _pictures.pixels(PARTS[kind]) == 0
    else:
        with pytest.raises(ServeError, match="more than 200,000 parts"):
            _pictures.pixels(PARTS[kind])
    assert time.monotonic() - started < 0.5


def test_headers_that_are_cut_anywhere_never_raise():
    for content in pictures(23, 17).values():
        for length in range(min(len(content), 200)):
            assert _pictures.pixels(content[:length]) >= 0


def batcher(run, **given):
    options = Options(None, **given)
    noted = []
    threads = ThreadPoolExecutor(options.workers)
    return Batcher(options, threads, lambda rows, requests, seconds: noted.append((rows, requests))), noted, threads


def doubling(calls=None, seconds=0.0, bad=None):
    """A signature that doubles its rows and notes the sizes of its batches."""

    class Doubling(Signature):
        def run(self, inputs):
            values = inputs["x"]
            if calls is not None:
                calls.append(len(values))
            time.sleep(seconds)
            if bad is not None and bad in values:
                raise ServeError("INVALID_ARGUMENT", f"{bad} is bad")
            return {"y": 2 * values}

    return Doubling("double", None, {"x": tf.TensorSpec([None], tf.float32)}, ("y",), True)


def rows(*values):
    return {"x": np.array(values, np.float32)}


def test_requests_that_wait_while_a_batch_runs_leave_together():
    async def ask():
        queue, noted, threads = batcher(None, max_batch=8)
        signature = doubling(seconds=0.05)
        asked = [asyncio.create_task(queue.submit(signature, rows(i, -i))) for i in range(9)]
        found = await asyncio.gather(*asked)
        threads.shutdown()
        return found, noted

    found, noted = asyncio.run(ask())
    assert [answer["y"].tolist() for answer in found] == [[2 * i, -2 * i] for i in range(9)]
    assert noted == [(2, 1), (8, 4), (8, 4)]


def test_a_lone_client_never_waits_for_others():
    async def ask():
        queue, _, threads = batcher(None, batch_timeout=5.0)
        started = time.monotonic()
        for i in range(20):
            await queue.submit(doubling(), rows(i))
        threads.shutdown()
        return time.monotonic() - started

    assert asyncio.run(ask()) < 1.0


def test_a_bad_request_fails_alone_and_its_batch_is_answered():
    async def ask():
        queue, _, threads = batcher(None, max_batch=16)
        signature = doubling(calls, seconds=0.01, bad=7)
        asked = [queue.submit(signature, rows(i)) for i in range(17)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        threads.shutdown()
        return found

    calls: list[int] = []
    found = asyncio.run(ask())
    assert [i for i, answer in enumerate(found) if isinstance(answer, ServeError)] == [7]
    assert all(answer["y"] == [2 * i] for i, answer in enumerate(found) if i != 7)
    assert len(calls) <= 1 + 1 + 2 * 4  # halves, not each row for itself


def test_a_full_queue_refuses_and_a_large_request_is_split_by_rows_and_by_pixels():
    async def ask():
        queue, noted, threads = batcher(None, max_batch=4, max_queue=10, max_pixels=100)
        with pytest.raises(ServeError, match="at most 10") as caught:
            await queue.submit(doubling(), rows(*range(11)))
        assert caught.value.status == 400
        answer = await queue.submit(doubling(), rows(*range(10)), costs=[60] * 10)
        assert answer["y"].tolist() == [2 * i for i in range(10)]
        assert noted == [(1, 1)] * 10
        slow = doubling(seconds=0.2)
        running = asyncio.create_task(queue.submit(slow, rows(*range(4))))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(queue.submit(slow, rows(*range(8))))
        await asyncio.sleep(0.02)
        with pytest.raises(ServeError, match="queue is full") as caught:
            await queue.submit(slow, rows(1, 2, 3))
        assert caught.value.status == 503
        await asyncio.gather(running, waiting)
        threads.shutdown()

    asyncio.run(ask())


def test_a_request_that_nobody_waits_for_is_not_run():
    async def ask():
        queue, _, threads = batcher(None, max_batch=1)
        signature = doubling(calls, seconds=0.1)
        first = asyncio.create_task(queue.submit(signature, rows(1)))
        second = asyncio.create_task(queue.submit(signature, rows(2)))
        third = asyncio.create_task(queue.submit(signature, rows(3)))
        await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.gather(first, third)
        assert queue.waiting == 0
        threads.shutdown()

    calls: list[int] = []
    asyncio.run(ask())
    assert len(calls) == 2


def test_only_requests_of_one_shape_share_a_batch():
    async def ask():
        queue, noted, threads = batcher(None)
        signature = doubling(seconds=0.02)
        values = [rows(1.0), rows(2.0), {"x": np.ones([1, 2])}, {"x": np.ones([1, 2])}, rows(3.0)]
        await asyncio.gather(*(queue.submit(signature, value) for value in values))
        threads.shutdown()
        return noted

    assert sorted(requests for _, requests in asyncio.run(ask())) == [1, 2, 2]


def test_versions_are_numbers_without_their_zeros_and_work_in_progress_is_not_seen(tmp_path):
    for name in ("net/1", "net/002", "net/.3.tmp", "net/notes", "other/5", ".hidden/1", "onnx/1", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "onnx/1/model.onnx").touch()  # for another runtime
    for name in ("net/1", "net/002", "other/5"):
        (tmp_path / name / "saved_model.pb").touch()
    found = Layout(tmp_path).scan()
    assert {name: [version.version for version in versions] for name, versions in found.items()} == {
        "net": [2, 1],
        "other": [5],
    }
    assert [version.version for version in Layout(tmp_path / "net").scan()["net"]] == [2, 1]
    assert [version.version for version in Layout(tmp_path / "net" / "002").scan()["net"]] == [2]
    with pytest.raises(InputError, match=r"holds no export; expected .*NAME/VERSION"):
        Layout(tmp_path / "empty")


def test_a_model_whose_name_is_a_number_is_a_model(tmp_path):
    (tmp_path / "2024" / "1").mkdir(parents=True)
    (tmp_path / "2024" / "1" / "saved_model.pb").touch()
    assert [version.version for version in Layout(tmp_path).scan()["2024"]] == [1]


def serving(folder, *names):
    """Writes empty versions, and returns the models of the folder, whose loading is a pretence."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "saved_model.pb").touch()

    class Pretended(models_.Models):
        def _load(self, found):
            if found.name == "broken":
                raise RefusedError("no graph")
            loaded = types.SimpleNamespace(close=lambda: None)
            return models_.Version(found, loaded, self._options, self._metrics)

    pytest.importorskip("prometheus_client")
    return Pretended(Options(folder), Metrics())


def test_a_model_that_is_taken_away_is_no_failure_and_one_that_is_refused_is_until_its_folder_goes(tmp_path):
    models = serving(tmp_path, "a/1", "b/1", "broken/1")

    async def look():
        await models.refresh(first=True)
        found = [models.names(), models.known()]
        (tmp_path / "b").rename(tmp_path / ".b")
        (tmp_path / "broken").rename(tmp_path / ".broken")
        models._states["broken"].clear()  # as if many versions had ended since
        await models.refresh()
        found += [models.names(), models.known()]
        await models.close()
        return found

    assert asyncio.run(look()) == [["a", "b"], ["a", "b", "broken"], ["a"], ["a"]]


def test_a_folder_that_cannot_be_looked_at_ends_nothing(tmp_path, monkeypatch):
    models = serving(tmp_path, "a/1")

    def too_many(folder):
        raise OSError(errno.EMFILE, "Too many open files")

    async def look():
        await models.refresh(first=True)
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "iterdir", too_many)
            with pytest.raises(OSError, match="Too many open files"):
                await models.refresh()
        found = models.names()
        await models.close()
        return found

    assert asyncio.run(look()) == ["a"]


def test_one_version_alone_is_gone_when_its_folder_is(tmp_path):
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "saved_model.pb").touch()
    layout = Layout(tmp_path / "net" / "1")
    assert [version.version for version in layout.scan()["net"]] == [1]
    (tmp_path / "net" / "1").rename(tmp_path / "net" / ".1")
    assert layout.scan() == {}


def test_a_version_that_comes_back_while_its_last_request_runs_is_counted_as_serving(tmp_path, monkeypatch):
    models = serving(tmp_path, "a/1", "b/1")

    async def no_trial(path, seconds):
        return ""

    async def look():
        await models.refresh(first=True)
        with models.get("b").held():
            (tmp_path / "b").rename(tmp_path / ".b")
            await models.refresh()
            (tmp_path / ".b").rename(tmp_path / "b")
            await models.refresh()
        await asyncio.gather(*models._ending)
        page, states = models._metrics.page().decode(), models.states("b")
        await models.close()
        return page, states

    monkeypatch.setattr(models_, "probe", no_trial)
    page, ((_, state),) = asyncio.run(look())
    assert state.state == "AVAILABLE"
    assert 'dlkit_serve_version{model="b",version="1"} 1.0' in page


def test_one_picture_that_stands_for_a_million_rows_is_looked_at_once():
    proto = tf.make_tensor_proto([b"\xff\xd8\xff" + b"\xd0\xff" * 90_000])
    proto.tensor_shape.dim[0].size = 1_000_000
    signature = Signature("s", None, {"image_bytes": tf.TensorSpec([None], tf.string)}, ("y",), True)
    inputs = _rpc._arrays({"image_bytes": proto}, signature, 16 << 20)
    started = time.monotonic()
    assert len(Service(Options(None), None, None)._costs(signature, inputs)) == 1_000_000
    assert time.monotonic() - started < 2


def test_a_message_that_quotes_a_long_request_stays_short():
    assert len(ServeError("NOT_FOUND", "x" * 10**6).message) < 1100


BAD = {
    "port": (70000, "port=70000; expected a whole number from 0 to 65535"),
    "max_batch": (0, "max_batch=0; expected a whole number from 1"),
    "timeout": ("2", "timeout='2'; expected a number"),
    "batchsize": (1, "unknown option 'batchsize'; did you mean 'batch_timeout'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_option_is_named_before_anything_is_loaded(name, tmp_path):
    value, message = BAD[name]
    with pytest.raises(InputError, match=message):
        serve(tmp_path, **{name: value})


def test_a_missing_extra_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(server._options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'dlkit serve needs starlette.*pip install "dlkit\[serve\]"'):
        serve(tmp_path)


def test_the_command_has_an_example_and_tells_wrong_settings(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    assert "Example: dlkit serve saved_models/" in said
    assert "serve only what you trust" in said.replace("\n", " ")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), "--set", "max_btch=3"])
    assert ended.value.code == 2
    assert "did you mean 'max_batch'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), "--set", "port=3"])
    assert ended.value.code == 2
    assert "an option of its own, --port" in capsys.readouterr().err


def test_serving_code_loads_neither_keras_nor_a_framework_before_the_arguments_are_checked():
    code = "import sys, dlkit.export; dlkit.export.serve; print({'keras', 'tensorflow'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_page_carries_names_as_text_and_allows_only_its_own_code():
    page = _page.html([{"name": '"><script>', "version": "1", "pictures": True, "outputs": ["<i>"]}]).decode()
    assert page.count("<script>") == 1
    assert "&quot;&gt;&lt;script&gt;" in page
    assert "unsafe-inline" not in _page.POLICY
    assert "http:" not in page
    assert "https:" not in page


def test_a_model_that_would_write_files_is_refused_before_it_is_loaded(tmp_path):
    from dlkit.export.server._loaded import Loaded, RefusedError

    class Writing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
        def call(self, x):
            tf.io.write_file(str(tmp_path / "harm"), x[0])
            return {"y": x}

    module = Writing()
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.call})
    with pytest.raises(RefusedError, match="reaches out of the process: WriteFile"):
        Loaded(tmp_path / "1")


def test_text_that_is_no_unicode_is_answered_in_base64():
    assert _tensors.plain(np.array([b"\xff", "Ёж".encode()], object)) == [{"b64": "/w=="}, "Ёж"]


def test_what_tensorflow_says_becomes_a_sentence():
    error = tf.errors.InvalidArgumentError(
        None, None, "Graph execution error:\n\nDetected at node X\nassertion failed: [a] [b]\n\t [[{{node x}}]]"
    )
    assert sentence(error) == "a b"
