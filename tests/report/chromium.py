"""Opens a page in headless Chromium over the DevTools protocol and says what is wrong with it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
]

# Waits for every image, then reports those that did not load and whatever sticks out sideways.
LOOK = """
(async () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const images = [...document.images];
  await Promise.all(images.map(i => i.decode().catch(() => null)));
  const width = document.documentElement.clientWidth;
  const inScroller = e => e.parentElement.closest('.scroll, pre') !== null;
  const outside = [...document.body.querySelectorAll('*')].filter(
    e => !inScroller(e) && e.getBoundingClientRect().right > width + 1);
  return {
    images: images.length,
    broken: images.filter(i => !(i.naturalWidth > 0)).map(i => i.src.slice(0, 60)),
    overflow: document.documentElement.scrollWidth - width,
    outside: outside.map(e => e.outerHTML.slice(0, 80)),
  };
})()
"""


def find() -> str | None:
    """Debian's chromium, if it is installed."""
    return shutil.which("chromium")


class Page:
    """One tab; ``trouble`` collects console errors, exceptions and requests that left the page."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._count = 0
        self.trouble: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer, keeping the events that come before it."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._event(message)

    def look(self, url: str, width: int, dark: bool = False) -> dict[str, Any]:
        """Load the page at a width in CSS pixels and run LOOK in it."""
        self.trouble.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.02)
        return dict(self.evaluate(LOOK), trouble=list(self.trouble))

    def evaluate(self, expression: str) -> Any:
        arguments = {"awaitPromise": True, "returnByValue": True}
        result = self.call("Runtime.evaluate", expression=expression, **arguments)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, however long, as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _event(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.trouble.append(f"exception: {params['exceptionDetails']['text']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.trouble.append(f"console: {params['args']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.trouble.append(f"log: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:")):
                self.trouble.append(f"request: {url}")


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile folder, ended with its children when the block is left."""
    import websocket

    program = find()
    assert program is not None
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        socket = websocket.create_connection(_tab(profile, process), timeout=30)
        try:
            page = Page(socket)
            yield page
            page.call("Browser.close")
        finally:
            socket.close()
        process.wait(timeout=10)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=10)


# Whatever proxy the environment names, or named when urllib was first used: not for this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _tab(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The DevTools address of the first tab, once the browser has written its port."""
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        if len(lines) == 2:
            with _DIRECT.open(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as r:
                tabs = [t for t in json.loads(r.read()) if t["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    log = (profile.parent / "chromium.log").read_text(errors="replace")[-2000:]
    raise AssertionError(f"chromium did not start (exit {process.poll()}): {log}")
