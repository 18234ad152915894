"""A server in a process of its own and clients for it: what the tests of `serve` share."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tensorflow as tf

READY = re.compile(r"ready after .*http://127\.0\.0\.1:(\d+)/(?:, gRPC on port (\d+))?")


class Server:
    """`dlkit serve` as a user starts it, on free ports.

    Args:
        directory: what is served.
        settings: fields of the server's options.
    """

    def __init__(self, directory, grpc=True, **settings):
        self._said = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  (closed in __exit__)
        command = [sys.executable, "-m", "dlkit", "serve", str(directory), "--port", "0"]
        command += ["--grpc-port", "0" if grpc else "None"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(command, stderr=self._said, stdout=self._said, env=environment)

    def wait(self, seconds=120):
        """Waits until it answers."""
        end = time.monotonic() + seconds
        while (found := READY.search(self.log())) is None:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self.log()}")
            time.sleep(0.05)
        self.port, self.grpc_port = int(found[1]), int(found[2] or 0)
        return self

    def log(self):
        return Path(self._said.name).read_text(encoding="utf-8", errors="replace")

    def __enter__(self):
        try:
            return self.wait()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *details):
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.process.kill()
        self.process.wait()
        self._said.close()

    def ask(self, method, path, body=None, headers=(), timeout=30):
        """One request on a connection of its own: status, headers, content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
            connection.request(method, path, content, dict(headers))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, **more):
        status, _, content = self.ask(method, path, body, **more)
        return status, json.loads(content)

    def predict(self, model, body, version=None, **more):
        versions = "" if version is None else f"/versions/{version}"
        return self.json("POST", f"/v1/models/{model}{versions}:predict", body, **more)

    def states(self, model):
        status, answer = self.json("GET", f"/v1/models/{model}")
        return {int(row["version"]): row for row in answer["model_version_status"]} if status == 200 else {}

    def until(self, condition, seconds=60):
        """Waits until `condition(self)` holds."""
        end = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"it did not happen within {seconds} s: {self.log()}")
            time.sleep(0.1)

    def memory(self):
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def png(pixels):
    return tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()


class Plus(tf.Module):
    """y = x / 2 + shift, the example of TensorFlow Serving's documentation."""

    def __init__(self, shift):
        super().__init__()
        self.shift = tf.Variable(float(shift))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def call(self, x):
        return {"y": x / 2.0 + self.shift}


def save(path, module, signatures):
    """Writes a SavedModel beside `path` and renames it there, as an export does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.tmp"
    tf.saved_model.save(module, str(scratch), signatures)
    scratch.rename(path)
    return path


def half_plus(path, shift):
    module = Plus(shift)
    return save(path, module, {"serving_default": module.call})
