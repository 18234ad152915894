"""Versions come, go and fail while requests run; the server ends gracefully."""

import http.client
import json
import shutil
import signal
import socket
import threading
import time

import numpy as np
import pytest
from serve_process import Server, half_plus

pytest.importorskip("starlette")


class Asking:
    """Threads that ask one model all the time and note what they got."""

    def __init__(self, server, threads=4):
        self._port, self._stop = server.port, threading.Event()
        self.answers, self.failures = [], []
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        body = json.dumps({"instances": [0.0, 0.0, 0.0]})
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/models/half:predict", body)
                response = connection.getresponse()
                answer = json.loads(response.read())
                if response.status == 200:
                    self.answers.append(tuple(answer["predictions"]))
                else:
                    self.failures.append((response.status, answer))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def shifts(asking):
    """The versions that answered; each answer must come from one alone."""
    assert all(len(set(answer)) == 1 for answer in asking.answers)
    return {answer[0] for answer in asking.answers}


@pytest.mark.slow
def test_new_versions_take_over_broken_ones_are_refused_and_no_request_is_lost(tmp_path):
    folder = tmp_path / "saved" / "half"
    half_plus(folder / "1", 1)
    good = half_plus(tmp_path / "made" / "2", 2)
    third = half_plus(tmp_path / "made" / "4", 4)
    with Server(tmp_path / "saved", poll=0.1) as server:
        with Asking(server) as asking:
            shutil.copytree(good, folder / ".2.tmp")
            (folder / ".2.tmp").rename(folder / "2")
            server.until(lambda s: s.states("half")[1]["state"] == "END")
            assert server.predict("half", {"instances": [0.0]}) == (200, {"predictions": [2.0]})
            assert server.predict("half", {"instances": [0.0]}, version=1)[0] == 404
            (folder / "3").mkdir()
            (folder / "3" / "saved_model.pb").write_bytes(b"no graph")
            server.until(lambda s: s.states("half").get(3, {}).get("state") == "END")
            refused = server.states("half")[3]["status"]
            assert refused["error_code"] == "FAILED_PRECONDITION"
            assert "its graph cannot be read" in refused["error_message"]
            assert server.predict("half", {"instances": [0.0]}) == (200, {"predictions": [2.0]})
            shutil.copytree(third, folder / ".4.tmp")
            (folder / ".4.tmp").rename(folder / "4")
            server.until(lambda s: s.states("half")[2]["state"] == "END")
        assert asking.failures == []
        assert len(asking.answers) > 100
        assert shifts(asking) == {1.0, 2.0, 4.0}
        # a model that is taken away is gone, one that is put there serves
        folder.rename(tmp_path / "saved" / "whole")
        server.until(lambda s: s.predict("whole", {"instances": [0.0]})[0] == 200)
        server.until(lambda s: s.predict("half", {"instances": [0.0]})[0] == 404)


@pytest.mark.slow
def test_a_broken_version_that_is_repaired_is_tried_again_and_a_wrong_network_is_noticed(exported, tmp_path):
    folder = tmp_path / "animals"
    shutil.copytree(exported, folder / "1")
    with Server(folder, grpc=False, poll=0.1) as server:
        broken = folder / "2"
        shutil.copytree(exported, folder / ".2.tmp")
        samples = folder / ".2.tmp/assets.extra/verification.npz"
        with np.load(samples) as stored:
            arrays = dict(stored)
        np.savez(samples, **(arrays | {"expected": arrays["expected"] + 0.5}))
        (folder / ".2.tmp").rename(broken)
        server.until(lambda s: s.states("animals").get(2, {}).get("state") == "END")
        assert "differ by 0.5" in server.states("animals")[2]["status"]["error_message"]
        assert server.states("animals")[1]["state"] == "AVAILABLE"
        shutil.copyfile(exported / "assets.extra/verification.npz", broken / "assets.extra/verification.npz")
        (broken / "saved_model.pb").touch()
        server.until(lambda s: s.states("animals")[2]["state"] == "AVAILABLE")


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_after_the_running_request(how, tmp_path):
    half_plus(tmp_path / "half" / "1", 1)
    with Server(tmp_path / "half", poll=0) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as running:
            body = b'{"instances": [0.0]}'
            head = f"POST /v1/models/half:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            running.sendall(head + body[:5])
            time.sleep(0.3)
            server.process.send_signal(how)
            time.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
            running.sendall(body[5:])
            assert running.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log()


def test_a_folder_of_broken_versions_is_one_sentence(tmp_path):
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(RuntimeError, match=r"error: .*nothing can be served: bad version 1: its graph cannot be read"):
        Server(tmp_path).__enter__()


@pytest.mark.slow
def test_six_versions_leave_no_memory_behind(tmp_path):
    folder = tmp_path / "half"
    made = half_plus(tmp_path / "made" / "1", 1)
    shutil.copytree(made, folder / "1")
    with Server(folder, grpc=False, poll=0.05) as server:
        sizes = []
        for version in range(2, 8):
            shutil.copytree(made, folder / f".{version}.tmp")
            (folder / f".{version}.tmp").rename(folder / str(version))
            server.until(lambda s, v=version: s.states("half")[v - 1]["state"] == "END")
            sizes.append(server.memory())
        assert (sizes[-1] - sizes[1]) / (len(sizes) - 2) < 2 << 20, sizes
