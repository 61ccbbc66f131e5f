"""Plain HTTP calls to the fake of Ollama, for its own tests."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.ollama_server import FakeOllama

TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
ABSENT = "sha256:" + "0" * 64


def digest_of(data: bytes | Path) -> str:
    return "sha256:" + hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()


def ask(fake: FakeOllama, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """(status, the body as JSON, as its lines of JSON, or None where it is empty)."""
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=20)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode())
        response = connection.getresponse()
        lines = [json.loads(line) for line in response.read().splitlines()]
        streamed = response.headers.get_content_type() == "application/x-ndjson"
    finally:
        connection.close()
    return response.status, lines if streamed else lines[0] if lines else None


def upload(fake: FakeOllama, data: bytes | Path) -> str:
    """The digest of data that is on the server now."""
    data = data if isinstance(data, bytes) else data.read_bytes()
    status, _ = ask(fake, "POST", f"/api/blobs/{digest_of(data)}", data)
    assert status in (200, 201)
    return digest_of(data)


def create(fake: FakeOllama, name: str, gguf: Path, **fields: Any) -> tuple[int, Any]:
    body = {"model": name, "files": {gguf.name: upload(fake, gguf)}, "template": TEMPLATE, "stream": False, **fields}
    return ask(fake, "POST", "/api/create", body)


def blobs(fake: FakeOllama) -> list[str]:
    return sorted(path.name for path in fake.store.blobs.iterdir())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
