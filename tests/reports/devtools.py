"""A real headless chromium, spoken to over its DevTools pipe: no port, no driver, nothing to install beside it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
# Chromium reads its descriptor 3 and writes its 4, whatever numbers the pipes have here.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 10) for number in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # seconds for one answer: a shared machine may be slow


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own; ``events`` holds everything it told, as (method, parameters)."""

    def __init__(self, program: str, profile: Path) -> None:
        """Starts the browser.

        Raises:
            TimeoutError: it does not answer.
        """
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        told, self._ask = os.pipe()
        self._hear, answers = os.pipe()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(told), str(answers), program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(told, answers),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
        )
        os.close(told)
        os.close(answers)
        try:
            page = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command.

        Raises:
            RuntimeError: the browser refuses it.
            TimeoutError: no answer in time.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._hear], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer within {PATIENCE:.0f} s")
            if not (heard := os.read(self._hear, 1 << 20)):
                raise RuntimeError("the browser ended")
            self._buffer += heard
        line, self._buffer = self._buffer.split(b"\0", 1)
        answer = json.loads(line)
        if "method" in answer:
            self.events.append((answer["method"], answer.get("params", {})))
        return answer

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Shows a file at a width in CSS pixels, below 600 as a phone, and waits until it has loaded."""
        self.events.clear()
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait(lambda: any(method == "Page.loadEventFired" for method, _ in self.events))

    def wait(self, until: Callable[[], Any]) -> None:
        """Raises TimeoutError where the condition does not come true."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError("what was waited for did not come")
            self.send("Runtime.evaluate", expression="0")  # hears what the browser has to tell
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of an expression in the page.

        Raises:
            RuntimeError: the script throws.
        """
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, element: str, scroll: bool = True) -> None:
        """A real click of the mouse on the middle of what the expression gives, brought into view before."""
        if scroll:
            self.run(f"{element}.scrollIntoView({{ block: 'center', inline: 'center', behavior: 'instant' }})")
        box = f"const b = {element}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]"
        x, y = self.run(f"(() => {{ {box} }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        """One key, such as Enter."""
        codes = {"Enter": 13, "Tab": 9}
        more = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes[key], **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    def downloaded(self, element: str, folder: Path) -> Path:
        """The file that a click on the element saves."""
        page, self._session = self._session, None  # downloads are the browser's own affair, not the page's
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        self._session = page
        self.events.clear()
        self.click(element)
        self.wait(lambda: any(p.get("state") == "completed" for m, p in self.events if m == "Browser.downloadProgress"))
        begun = next(p for m, p in self.events if m == "Browser.downloadWillBegin")
        return folder / begun["suggestedFilename"]

    def complaints(self) -> list[str]:
        """What the console says, what was thrown, and every address asked for outside the file itself."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        found = [f"{method}: {json.dumps(p)[:2000]}" for method, p in self.events if method in told]
        asked = [p["request"]["url"] for method, p in self.events if method == "Network.requestWillBeSent"]
        return found + [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Ends the browser, and waits until it has."""
        try:
            self._session = None
            self.send("Browser.close")
            self._process.wait(timeout=15)
        except (RuntimeError, TimeoutError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._ask)
            os.close(self._hear)
