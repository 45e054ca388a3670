"""A real Chromium, driven through its pipe (the DevTools protocol), for the tests of the pages."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

WAIT = 30.0
"""Seconds after which what was waited for will not come."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # there is none for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One Chromium with an empty profile."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        assert program is not None, "Chromium is needed: apt-get install chromium (make test says so too)"
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        self._log = (folder / "chromium.log").open("wb")
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *_FLAGS, f"--user-data-dir={folder / 'profile'}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(read, write),
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(read)
        os.close(write)
        self._data = b""
        self._id = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A command, and what it gives."""
        self._id += 1
        command: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        until = time.monotonic() + WAIT
        while True:
            message = self._next(until)
            if message.get("id") == self._id:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            if "method" in message:
                self.events.append(message)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._data:
            left = max(0.0, until - time.monotonic())
            assert select.select([self._read], [], [], left)[0], "Chromium does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, f"Chromium is gone; see {self._log.name}"
            self._data += data
        line, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def tab(self, width: int, height: int, *, phone: bool = False) -> Tab:
        """A new tab of that size."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        return tab

    def frames(self) -> list[Tab]:
        """What other sites' pages have in frames."""
        targets = self.call("Target.getTargets")["targetInfos"]
        frames = [each["targetId"] for each in targets if each["type"] == "iframe"]
        sessions = [self.call("Target.attachToTarget", targetId=each, flatten=True) for each in frames]
        return [Tab(self, s["sessionId"], each) for s, each in zip(sessions, frames, strict=True)]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(WAIT)
        self._log.close()


class Tab:
    """A page as somebody sees it."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """What an expression gives in the page; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, f"{expression}: {done}"
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression holds; while a page is loaded it may not even have a value."""
        deadline = time.monotonic() + WAIT
        tried = f"(() => {{ try {{ return !!({expression}) }} catch {{ return false }} }})()"
        while not self.js(tried):
            assert time.monotonic() < deadline, f"in vain: {expression}\n{self.text()}"
            time.sleep(0.02)

    def text(self) -> str:
        return str(self.js("document.body ? document.body.innerText : ''"))

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What is seen, as PNG; ``whole``: also what would have to be scrolled to."""
        self.call("Page.bringToFront")  # what is not seen is not drawn
        size = self.call("Page.getLayoutMetrics")["cssContentSize" if whole else "cssLayoutViewport"]
        width, height = size.get("width") or size["clientWidth"], size.get("height") or size["clientHeight"]
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the page or the browser found wrong: exceptions, and what the policy forbade."""
        own = [e for e in self._browser.events if e.get("sessionId") == self._session]
        found = [str(e["params"]) for e in own if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in own if e["method"] == "Log.entryAdded"]
        # That a connection broke is what some tests are about.
        return found + [str(e) for e in logged if e["level"] == "error" and e["source"] != "network"]

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)
