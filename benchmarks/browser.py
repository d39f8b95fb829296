"""Headless Chromium through its remote protocol, without a library: JSON over two pipes.

https://chromedevtools.github.io/devtools-protocol/, with ``--remote-debugging-pipe``: the browser
reads messages from descriptor 3 and writes them to 4, each ended by a zero byte.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 60  # seconds for one answer, on a busy machine


def executable() -> str | None:
    """The path of Chromium; None where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    return None


class Browser:
    """One headless browser with one page; a context manager.

    Raises:
      FileNotFoundError: there is no Chromium.
    """

    def __init__(self) -> None:
        program = executable()
        if program is None:
            raise FileNotFoundError(f"no Chromium; want one of {', '.join(NAMES)}")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self._folder.name}", "--no-first-run", "--disable-extensions"]
        # The shell puts the two pipes where Chromium looks for them.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *flags, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def _read(self, end: float) -> dict[str, Any]:
        """The next message, before the time ``end``."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("the browser ended" if ready else "the browser does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method; events that come meanwhile are kept in ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT
        while True:
            answer = self._read(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(
        self, address: str, width: int = 1280, *, script: bool = True, dark: bool = False
    ) -> None:
        """Load an address, and wait until it has loaded."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events = []
        self.call("Page.navigate", url=address)
        end = time.monotonic() + WAIT
        while not self.named("Page.loadEventFired"):
            self.events.append(self._read(end))

    def named(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of this name since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited where it is a promise."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + WAIT
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"{condition}: not true; errors {self.errors()}"
            time.sleep(0.05)

    def mouse(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name)

    def requests(self) -> list[str]:
        """Addresses that the page asked for, without those inside it."""
        urls = [one["request"]["url"] for one in self.named("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    def errors(self) -> list[Any]:
        """Exceptions of the script, and what the browser logged as an error."""
        entries = [one["entry"] for one in self.named("Log.entryAdded")]
        logged = [entry["text"] for entry in entries if entry["level"] == "error"]
        return self.named("Runtime.exceptionThrown") + logged
