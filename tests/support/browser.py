"""A real Chromium, driven by its WebDriver over plain HTTP."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ENTER, SPACE, TAB, LEFT, RIGHT = "\ue007", " ", "\ue004", "\ue012", "\ue014"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--window-size=1400,900"),
)


class Browser:
    """A page in Chromium, with the messages of its console and the addresses it requested."""

    def __init__(self, driver: str, profile: Path) -> None:
        self._driver = driver
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{session['sessionId']}"
        # Leave the page that Chromium starts with, and forget what it asked for.
        self._post(f"{self._session}/url", {"url": "about:blank"})
        self.requests()

    def close(self) -> None:
        self._send("DELETE", self._session, None)

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        return self._send("POST", path, json.dumps(content).encode())

    def _send(self, method: str, path: str, content: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._driver + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self._post(f"{self._session}/url", {"url": page.absolute().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function; return its value."""
        content = {"script": script, "args": list(arguments)}
        return self._post(f"{self._session}/execute/sync", content)

    def find(self, css: str) -> str:
        found = self._post(f"{self._session}/element", {"using": "css selector", "value": css})
        return found[_ELEMENT]

    def click(self, element: str) -> None:
        self._post(f"{self._session}/element/{element}/click", {})

    def press(self, element: str, keys: str) -> None:
        """Focus an element and press keys."""
        self._post(f"{self._session}/element/{element}/value", {"text": keys})

    def type(self, keys: str) -> None:
        """Press keys where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        content = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._post(f"{self._session}/actions", content)

    def view(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the size of the window in pixels, and the scheme, light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def draw_all(self) -> None:
        """Draw the whole page, also what is outside the window."""
        self._command("Page.captureScreenshot", {"captureBeyondViewport": True})

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        content = {"cmd": name, "params": parameters}
        return self._post(f"{self._session}/goog/cdp/execute", content)

    def messages(self) -> list[str]:
        """Return the messages of the console since the last call, with errors of scripts."""
        entries = self._post(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def requests(self) -> list[str]:
        """Return the addresses requested since the last call, without `data:`."""
        entries = self._post(f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        addresses = [each["request"]["url"] for each in sent]
        return [address for address in addresses if not address.startswith("data:")]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile; skip the test if none is installed."""
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium and chromedriver (on Debian: chromium and chromium-driver)")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while not (port := re.search(r"started successfully on port (\d+)", said)):
                said = process.stdout.readline()
                assert said, "chromedriver ended before it told its port"
            browser = Browser(f"http://127.0.0.1:{port[1]}", profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
