"""Loads the local server on this machine: version changes under load, batching, and 5,000 mutated requests.

    python benchmarks/load.py                      (about 5 minutes; writes benchmarks/results/load.json)
    python benchmarks/load.py --requests 1000 --mutated 500 --rounds 1

ResNet-20 of dlkit with random weights, 32 x 32 PNG files in base64, 32 clients on loopback that each wait for their
answer before they ask again. Class names carry the version, so that an answer tells which version gave it.

- change: `--requests` requests while versions 2 and 4 are published and the broken version 3 between them.
- batching: requests per second with `max_batch=32` and with `max_batch=1`, interleaved rounds.
- mutated: malformed JSON, wrong base64, cut and flipped pictures, unknown models, wrong paths, pictures of 100
  megapixels, bodies over the limit, slow clients; the code of each answer, its time, and the server's memory.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import json
import os
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "load.json"
READY = re.compile(r"ready after .*http://127\.0\.0\.1:(\d+)/")
LENGTH, VERSION = re.compile(rb"content-length: (\d+)"), re.compile(rb'"v(\d+) class')
SIDE, CLIENTS, READ_TIMEOUT = 32, 32, 1.0


def write(folder, versions=3):
    """Exports ResNet-20 three times, and once broken: a byte of its weights is another one."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    from dlkit import models
    from dlkit.data import Preprocess
    from dlkit.export import saved_model

    model = models.resnet_cifar(20, classes=10)
    for version in range(1, versions + 1):
        labels = [f"v{version} class {i}" for i in range(10)]
        saved_model(model, Preprocess(SIDE), labels, folder / "made" / "net", version=version)
    shutil.copytree(folder / "made/net/1", folder / "made/broken")
    (data,) = (folder / "made/broken/variables").glob("*.data-*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 255
    data.write_bytes(content)
    pictures = np.random.default_rng(0).integers(0, 255, (64, SIDE, SIDE, 3), np.uint8)
    return [tf.io.encode_png(picture).numpy() for picture in pictures]


def publish(source, folder, version):
    """A version appears by one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{version}.tmp"
    shutil.copytree(source, scratch)
    scratch.rename(folder / str(version))


class Server:
    """`dlkit serve` in a process of its own."""

    def __init__(self, directory, **settings):
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  (closed in __exit__)
        command = [sys.executable, "-m", "dlkit", "serve", str(directory), "--port", "0", "--grpc-port", "None"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        started = time.monotonic()
        self.process = subprocess.Popen(command, stderr=self._log, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        while not (found := READY.search(self.log())):
            if self.process.poll() is not None:
                raise RuntimeError(self.log())
            time.sleep(0.02)
        self.port, self.start_seconds = int(found[1]), time.monotonic() - started

    def log(self):
        return Path(self._log.name).read_text()

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def request(body, path="/v1/models/net:predict", method="POST"):
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def predict(content):
    return request(json.dumps({"instances": [{"b64": base64.b64encode(content).decode()}]}).encode())


async def answer(reader):
    """One response: its code and content."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(LENGTH.search(head)[1])
    return int(head[9:12]), await reader.readexactly(length)


async def close(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer: cheap, because it shares the processor."""

    def __init__(self, requests, turn, again, found, times):
        self._requests, self._turn, self._again, self._found, self._times = requests, turn, again, found, times
        self.done = asyncio.get_running_loop().create_future()
        self._held, self._asking = b"", False

    def connection_made(self, transport):
        self._transport = transport
        self._ask()

    def _ask(self):
        self._turn += 1
        self._asking, self._before = True, time.perf_counter()
        self._transport.write(self._requests[self._turn % len(self._requests)])

    def data_received(self, data):
        self._held += data
        head, separator, content = self._held.partition(b"\r\n\r\n")
        if not separator or len(content) < int(LENGTH.search(head)[1]):
            return
        self._held, self._asking = b"", False
        self._times.append(time.perf_counter() - self._before)
        code = int(head[9:12])
        names = set(VERSION.findall(content)) if code == 200 else {content[:80]}
        self._found.append((code, b" ".join(sorted(names)).decode(errors="replace")))
        if self._again():
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error):
        if self._asking:
            self._found.append((0, repr(error)))
        self.done.set_result(None)


async def load(port, requests, total, clients=CLIENTS, during=None):
    """Asks at least `total` times, and until `during(count)` is done; returns answers, seconds each, seconds in all.

    An answer is (code, versions that its class names tell).
    """
    found, times = [], []
    director = None if during is None else asyncio.create_task(during(lambda: len(found)))

    def again():
        return len(found) < total or not (director is None or director.done())

    async def client(number):
        while again():
            made = Client(requests, number, again, found, times)
            await asyncio.get_running_loop().create_connection(lambda made=made: made, "127.0.0.1", port)
            await made.done

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.perf_counter() - started
    if director is not None:
        await director
    return found, times, seconds


def change(folder, pictures, total):
    """At least 10,000 requests over two version changes and a broken version."""
    served = folder / "change" / "net"
    publish(folder / "made/net/1", served, 1)
    plan = [
        ("made/net/2", 2, "net version 1: ended"),
        ("made/broken", 3, "net version 3: refused"),
        ("made/net/3", 4, "net version 2: ended"),
    ]
    took = {}

    async def during(count):
        for number, (source, version, until) in enumerate(plan):
            while count() < (number + 1) * total // 5:
                await asyncio.sleep(0.02)
            started = time.monotonic()
            await asyncio.to_thread(publish, folder / source, served, version)
            while until not in server.log():
                if time.monotonic() - started > 180:
                    raise RuntimeError(f"waited in vain for {until!r}: {server.log()}")
                await asyncio.sleep(0.05)
            took[f"version {version} decided after, s"] = time.monotonic() - started
            last = count()
            while count() < last + total // 10:  # the version that won answers for a while
                await asyncio.sleep(0.02)

    with Server(folder / "change", poll=0.2) as server:
        asked = [predict(p) for p in pictures]
        found, times, seconds = asyncio.run(load(server.port, asked, total, during=during))
        log = server.log()
    codes = collections.Counter(code for code, _ in found)
    versions = collections.Counter(name for code, name in found if code == 200)
    return {
        "requests": len(found),
        "failed": len(found) - codes[200],
        "failures": [list(row) for row in found if row[0] != 200][:5],
        "answers_by_version": dict(versions),
        "answers_from_two_versions": sum(count for name, count in versions.items() if len(name.split()) != 1),
        "broken_version": next((line for line in log.splitlines() if "refused" in line), "         NOT REFUSED")[9:],
        "seconds": seconds,
        "requests_per_second": len(found) / seconds,
        "median_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * sorted(times)[int(0.99 * len(times))],
        "max_ms": 1000 * max(times),
        **took,
    }


def batching(folder, pictures, rounds, total=2000):
    """Requests per second with and without batches."""
    publish(folder / "made/net/1", folder / "batching" / "net", 1)
    cores = os.cpu_count() or 1
    settings = {
        "max_batch=32": {"max_batch": 32},
        "max_batch=1": {"max_batch": 1},
        f"max_batch=1, workers={cores}": {"max_batch": 1, "workers": cores},
        f"max_batch=1, workers={4 * cores}": {"max_batch": 1, "workers": 4 * cores},
    }
    requests = [predict(p) for p in pictures]
    rates = {name: [] for name in settings}
    starts = []
    for _ in range(rounds):
        for name, given in settings.items():
            with Server(folder / "batching", **given) as server:
                starts.append(server.start_seconds)
                asyncio.run(load(server.port, requests, 300))
                found, _, seconds = asyncio.run(load(server.port, requests, total))
                if any(code != 200 for code, _ in found):
                    raise RuntimeError(f"{name}: {next(row for row in found if row[0] != 200)}")
                rates[name].append(total / seconds)
                if name == "max_batch=32":
                    _, alone, _ = asyncio.run(load(server.port, requests, 300, clients=1))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    unbatched = max(rate for name, rate in medians.items() if name != "max_batch=32")
    return {
        "requests_per_second": rates,
        "median": medians,
        "times_unbatched": medians["max_batch=32"] / unbatched,
        "one_client_median_ms": 1000 * statistics.median(alone),
        "start_seconds": statistics.median(starts),
    }


def bomb(side=10_000):
    """A valid PNG of side x side pixels in a few kilobytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def mutations(pictures, seed=0):
    """Endless (kind, request, allowed codes)."""
    draw = random.Random(seed)
    good = json.dumps({"instances": [{"b64": base64.b64encode(pictures[0]).decode()}]})
    huge = predict(bomb())
    over = request(b" " * ((16 << 20) + 1))

    def cut_json():
        return request(good[: draw.randrange(len(good))].encode()), {400}

    def flipped():
        content = bytearray(good.encode())
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        return request(bytes(content)), {200, 400, 413}

    def base64_wrong():
        text = base64.b64encode(pictures[0]).decode()
        at = draw.randrange(len(text))
        return request(json.dumps({"instances": [{"b64": text[:at] + "*" + text[at:]}]}).encode()), {400}

    def cut_picture():
        picture = draw.choice(pictures)
        return predict(picture[: draw.randrange(len(picture) - 20)]), {400}

    def flipped_picture():
        content = bytearray(draw.choice(pictures))
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        return predict(bytes(content)), {200, 400, 413}

    def noise():
        return predict(draw.randbytes(draw.randrange(3000))), {400}

    def form():
        values = [
            {},
            [],
            1,
            None,
            "",
            [[]],
            [None],
            [{}],
            [{"b64": 1}],
            [{"b64": ""}],
            {"b64": "AAAA"},
            [[["x"]]],
            [1e999],
        ]
        key, value = draw.choice(["instances", "inputs", "signature_name", "x"]), draw.choice(values)
        empty = key == "inputs" and value == []  # no rows are a right request in columns
        return request(json.dumps({key: value}).encode()), {200 if empty else 400}

    def nested():
        return request(b'{"instances": ' + b"[" * draw.randrange(1, 200_000)), {400}

    def unknown():
        name = draw.choice(["nets", "net2", "%00", "..%2f..", "<script>", "n" * 3000])
        return request(good.encode(), f"/v1/models/{name}:predict"), {404}

    def unknown_version():
        return request(good.encode(), f"/v1/models/net/versions/{draw.randrange(2, 10**9)}:predict"), {404}

    def path():
        found = draw.choice(["/v1/models/net:explain", "/v1/models/net", "/v1/", "/v1/models/net/versions/x:predict"])
        return request(good.encode(), found), {400}

    def method():
        return request(
            b"", draw.choice(["/v1/models/net:predict", "/v1/models/net"]), draw.choice(["PUT", "DELETE"])
        ), {400}

    usual = [
        cut_json, flipped, base64_wrong, cut_picture, flipped_picture, noise, form, nested, unknown, unknown_version,
        path, method,
    ]  # fmt: skip
    while True:
        for make in usual:
            yield make.__name__, *make()
        chance = draw.random()
        if chance < 0.2:
            yield "bomb", huge, {413}
        elif chance < 0.25:
            yield "over", over, {413}


async def mutated_load(server, pictures, total, slow):
    """All mutated requests from 8 connections, slow clients beside them; returns wrong answers, times and counts."""
    stream, wrong, times, counts = mutations(pictures), [], collections.defaultdict(list), collections.Counter()

    async def client():
        reader = writer = None
        while sum(counts.values()) < total:
            kind, content, allowed = next(stream)
            counts[kind] += 1
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            before = time.perf_counter()
            try:
                writer.write(content)
                code, body = await answer(reader)
            except (asyncio.IncompleteReadError, OSError) as error:
                wrong.append((kind, type(error).__name__))
                await close(writer)
                writer = None
                continue
            times[kind].append(time.perf_counter() - before)
            if code not in allowed or (code != 200 and set(json.loads(body)) != {"error"}):
                wrong.append((kind, code, body[:200].decode(errors="replace")))
            if code in (408, 413):
                await close(writer)
                writer = None
        if writer is not None:
            await close(writer)

    async def trickle(number):
        """Sends a head or a body byte by byte, and is cut off."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        content = predict(pictures[0])
        content = content if number % 2 else content[: content.index(b"\r\n\r\n") + 4]
        before = time.perf_counter()
        if number % 2:
            writer.write(content[:150])
        code = None
        for at in range(10_000):
            try:
                writer.write(content[150 + at : 151 + at] if number % 2 else content[at : at + 1])
                code = int((await asyncio.wait_for(reader.read(1000), 0.1))[9:12] or 0)
                break
            except TimeoutError:
                continue
            except OSError:
                code = 0
                break
        times["slow"].append(time.perf_counter() - before)
        counts["slow"] += 1
        if code not in ((408,) if number % 2 else (0,)) or times["slow"][-1] > 2.5 * READ_TIMEOUT:
            wrong.append(("slow", code, times["slow"][-1]))
        await close(writer)

    await asyncio.gather(*(client() for _ in range(8)), *(trickle(number) for number in range(slow)))
    return wrong, times, counts


def mutated(folder, pictures, total, slow=40):
    """Nothing but wrong requests, then a right one."""
    publish(folder / "made/net/1", folder / "mutated" / "net", 1)
    with Server(folder / "mutated", read_timeout=READ_TIMEOUT) as server:
        good = [predict(p) for p in pictures]
        asyncio.run(load(server.port, good, 500))
        asyncio.run(mutated_load(server, pictures, min(total, 1000), 4))  # what caches hold is held then
        before = server.memory()
        wrong, times, counts = asyncio.run(mutated_load(server, pictures, total, slow))
        found, _, _ = asyncio.run(load(server.port, good, 200))
        after = server.memory()
    late = {kind: max(found) for kind, found in times.items() if kind != "slow" and max(found) > 1.0}
    return {
        "requests": sum(counts.values()),
        "kinds": dict(counts),
        "wrong": [list(row) for row in wrong[:10]],
        "wrong_count": len(wrong),
        "slowest_s": {kind: max(found) for kind, found in times.items()},
        "over_one_second": late,
        "good_afterwards": sum(code == 200 for code, _ in found),
        "memory_before_mb": before,
        "memory_after_mb": after,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--mutated", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["change", "batching", "mutated"])
    parser.add_argument("--made", type=Path, help="keep the exports in this folder, and use them if they are there")
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dlkit-load-"))
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    try:
        if given.made and (given.made / "made").exists():
            shutil.copytree(given.made, folder, dirs_exist_ok=True)
            pictures = [path.read_bytes() for path in sorted((folder / "pictures").iterdir())]
        else:
            pictures = write(folder)
            if given.made:
                shutil.copytree(folder, given.made)
                (given.made / "pictures").mkdir()
                for number, picture in enumerate(pictures):
                    (given.made / "pictures" / f"{number:02}.png").write_bytes(picture)
        parts = {
            "change": lambda: change(folder, pictures, given.requests),
            "batching": lambda: batching(folder, pictures, given.rounds),
            "mutated": lambda: mutated(folder, pictures, given.mutated),
        }
        for name, run in parts.items():
            if given.only in (None, name):
                held[name] = run()
                print(name, json.dumps(held[name], indent=1), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    held["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    if not given.no_write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
