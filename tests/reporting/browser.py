"""A headless Chromium, told what to do through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

_KEYS = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}
_AT_THE_END = "(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0))))()"


class Browser:
    """One page in a browser of its own, off the network. `problems` and `requests` are what it said and asked for."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Browser:
        self._folder = tempfile.mkdtemp()
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run")
        self._process = subprocess.Popen(
            [self._program, *options, f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._session = aiohttp.ClientSession()
        port = await self._port()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
            page = next(target for target in await response.json() if target["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.cancel()
        await self._session.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _port(self) -> str:
        for _ in range(300):
            told = Path(self._folder) / "DevToolsActivePort"
            if told.exists() and (lines := told.read_text().splitlines()):
                return lines[0]
            await asyncio.sleep(0.1)
        raise TimeoutError("the browser did not start within 30 s")

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Audits.issueAdded" and "NavigationEntryMarkedSkippable" not in str(told):  # we use no mouse
            self.problems.append(str(told["issue"]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; what it answers."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        told = await asyncio.wait_for(answer, 60)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return dict(told["result"])

    async def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until it is painted."""
        self._loaded.clear()
        await self.send("Page.navigate", url=path.resolve().as_uri() + fragment)
        await asyncio.wait_for(self._loaded.wait(), 60)
        await self.run(_AT_THE_END)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        told = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    async def timed(self, script: str) -> float:
        """Milliseconds until a script is done and the page is painted again."""
        return float(
            await self.run(
                f"(async () => {{ const start = performance.now(); {script}; await {_AT_THE_END}; "
                "return performance.now() - start; })()"
            )
        )

    async def press(self, key: str) -> None:
        """Press and release a key."""
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        given = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        await self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **given)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Be a window of this width, of a reader who likes it light or dark."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=scheme)
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    async def screenshot(self, path: Path) -> None:
        told = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    async def print_pdf(self, path: Path) -> None:
        told = await self.send("Page.printToPDF", printBackground=False)
        path.write_bytes(base64.b64decode(told["data"]))
