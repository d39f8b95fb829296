"""A headless Chromium over its DevTools pipe, without any library.

Chromium reads commands from file descriptor 3 and writes answers to 4, JSON ended by a zero byte:
https://chromedevtools.github.io/devtools-protocol.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

import pytest

WAIT = 60  # seconds for one answer, on a busy machine


class Browser:
    """One tab. Use it as a context manager; a test without Chromium is skipped."""

    def __init__(self) -> None:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("needs chromium")
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe"
        command = f'exec "{path}" {flags} --user-data-dir="{self._profile.name}" about:blank'
        redirect = f"{command} 3<&{commands} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", redirect], pass_fds=(commands, answers), stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._count = 0
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target for target in targets if target["type"] == "page")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT
        while True:
            answer = self._next(end)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._event(answer)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            assert ready, "chromium does not answer"
            self._buffer += os.read(self._in, 2**20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _event(self, message: dict[str, Any]) -> None:
        method = message.get("method", "")
        parameters = message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + WAIT
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: not true; errors {self.errors}"
            time.sleep(0.05)

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window and the scheme of colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def png(self) -> bytes:
        """The whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])
