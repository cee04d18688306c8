"""Control a real headless Chromium with its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

#: Key codes that make Chromium run the key's default action.
_CODES = {"Enter": (13, "\r"), "Tab": (9, ""), "Backspace": (8, ""), "ArrowLeft": (37, "")}


class Page:
    """A tab. ``events`` are the protocol's events so far."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._ids = socket, count()
        self.events: list[dict[str, Any]] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=30)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, value: object) -> None:
        """Wait until a JavaScript expression has a value."""
        deadline = time.monotonic() + 20
        while (found := await self.evaluate(expression)) != value:
            assert time.monotonic() < deadline, f"{expression} is {found!r}, not {value!r}"
            await asyncio.sleep(0.02)

    async def press(self, key: str) -> None:
        code, text = _CODES.get(key, (ord(key[0]), key))
        down = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        await self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """Start Chromium with an empty profile in ``folder``, and yield an empty tab."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
    process = subprocess.Popen(
        [program, *options, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = json.loads(await response.text())
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        process.wait(20)


async def _port(file: Path, process: "subprocess.Popen[bytes]") -> int:
    """The port in the file that Chromium writes when it is ready."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(FileNotFoundError, IndexError, ValueError):
            return int(file.read_text().splitlines()[0])
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < deadline, "Chromium did not start within 60 s"
        await asyncio.sleep(0.05)
