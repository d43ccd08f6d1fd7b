"""Headless Chromium, told what to do over its debugging pipe: what a person's browser shows.

Specification: Chrome DevTools Protocol.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS = 60.0
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One browser with one page; made by `open_browser`.

    Attributes:
        events: What the browser told unasked, such as errors in the console.
    """

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._count = 0
        self._session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Ask for one thing and return what came."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        number = self._count
        while True:
            came = self._next()
            if came.get("id") == number:
                assert "error" not in came, came["error"]
                return came["result"]
            self.events.append(came)

    def open(self, url, *, width=1000, height=800, scheme="light", script=True):
        """Open an address in a window of some size, in light or dark; wait until it is there."""
        self.events.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, expression):
        """Return the value of an expression of JavaScript in the page."""
        done = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screenshot(self, path):
        """Write the whole page to a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """Return what the browser complained of since the page was opened."""
        self.run("1")  # whatever was said before is here by now
        kinds = {"Log.entryAdded", "Runtime.exceptionThrown", "Network.loadingFailed"}
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self):
        """Return the addresses that the page asked for, without `data:`."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def _next(self):
        ends = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._from], [], [], ends - time.monotonic())
            assert readable, "the browser does not answer"
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def open_browser(folder):
    """Start a browser with an empty profile below `folder`, and end it with the block."""
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    with subprocess.Popen(
        ["bash", "-c", script, "bash", str(commands), str(answers), *command],
        pass_fds=(commands, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    ) as process:
        os.close(commands)
        os.close(answers)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            process.terminate()
            process.wait(_SECONDS)
            os.close(to_browser)
            os.close(from_browser)
