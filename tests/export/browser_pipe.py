"""Drives a headless Chromium through the pipe of its DevTools protocol: the standard library is enough."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def installed():
    """Returns the browser's path, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a real browser.

    Args:
        width, height: of its window in CSS pixels.
        dark: what the page is told that its reader prefers.
    """

    def __init__(self, width=900, height=560, dark=False):
        self._profile = tempfile.mkdtemp(prefix="dlkit-browser-")
        # the protocol wants commands on 3 and writes to 4: the pipes must not lie there already
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 50) for pair in (os.pipe(), os.pipe()) for end in pair]
        commands, self._out, self._in, answers = ends

        def wire():
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        arguments = [
            installed(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={self._profile}", f"--window-size={width},{height}",
            "--hide-scrollbars", "--disable-background-networking", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            arguments, preexec_fn=wire, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._number, self._buffer, self._session, self.events = 0, b"", None, []
        try:
            self._page(width, height, dark)
        except BaseException:
            self.__exit__()
            raise

    def _page(self, width, height, dark):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(OSError):
            shutil.rmtree(self._profile)

    def call(self, method, **parameters):
        """Sends one command and returns its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self, seconds=30):
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, address):
        """Loads a page and waits until it is complete."""
        self.call("Page.navigate", url=address)
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression on the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def until(self, condition, seconds=20):
        """Waits for a JavaScript condition."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > end:
                raise AssertionError(f"{condition} did not come true: {self.evaluate('document.body.innerText')}")
            time.sleep(0.05)

    def drop(self, path, selector):
        """Drags a file from outside onto an element."""
        box = self.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({selector}.getBoundingClientRect())")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def choose(self, path, selector):
        """Chooses a file in a file input."""
        found = self.call("Runtime.evaluate", expression=selector)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found)

    def press(self, key, code):
        """Presses and releases a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self):
        """Returns what is seen as a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
