"""How Ollama spells what it is asked for: the address of a server, the name of a model.

Names are those of its types/model/name.go: `[host/][namespace/]model[:tag]`. A part begins with a letter, a digit or
"_" and has at most 80 characters.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from po_distill.errors import InputError, SettingsError

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:(?:{_PART}(?::\d+)?/)?[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{_PART}(?::{_PART})?")


class ModelName(NamedTuple):
    """A model's name, taken apart; `str()` is the whole of it."""

    stem: str  # with host and namespace, where it has them
    tag: str  # `latest` where none is said

    def __str__(self) -> str:
        return f"{self.stem}:{self.tag}"


def read_model_name(text: str) -> ModelName:
    """The name in a text. Raises InputError where Ollama would not take it."""
    if not _NAME.fullmatch(text):
        raise InputError(
            f"{text!r} is no name that Ollama takes for a model.",
            "Use letters, digits, '-', '_' and '.', such as po-student-v1, with an optional tag after a colon.",
        )
    return split_model_name(text)


def split_model_name(text: str) -> ModelName:
    """A name that a server wrote, taken apart: a colon before a slash belongs to a host."""
    head, colon, tail = text.rpartition(":")
    return ModelName(head, tail) if colon and "/" not in tail else ModelName(text, "latest")


def server_url(given: str | None, given_as: str) -> str:
    """The address of a server: `given`, else what OLLAMA_HOST says, else Ollama's own on this machine.

    It is read as Ollama reads OLLAMA_HOST: a host, host:port or a URL. The port is 11434, in a URL the scheme's; a
    server that listens on every address is asked on the loopback one. Raises SettingsError, which names `given_as` or
    the variable.
    """
    if not given:
        given, given_as = os.environ.get("OLLAMA_HOST", "").strip(" \"'"), "OLLAMA_HOST"
    scheme, separator, rest = given.rpartition("://")
    scheme = scheme.lower() or "http"
    rest = f"[{rest}]" if _is_ipv6(rest) else rest
    try:
        address = urlsplit(f"//{rest}")
        port = address.port
    except ValueError as error:
        raise _no_address(given, given_as) from error
    if scheme not in ("http", "https") or address.query or address.fragment or "@" in rest or " " in rest:
        raise _no_address(given, given_as)
    host = address.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an address to ask, none to listen on
    if port is None:
        port = {"http": 80, "https": 443}[scheme] if separator else 11434
    return f"{scheme}://{f'[{host}]' if _is_ipv6(host) else host}:{port}{address.path.rstrip('/')}"


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False


def _no_address(given: str, given_as: str) -> SettingsError:
    shown = "no address" if set(given) & set("@?") else f"{given!r}, which is no address"  # those may hold a password
    return SettingsError(
        f"{given_as} for Ollama is {shown} of a server.",
        "Give one such as http://127.0.0.1:11434, without user, password or query.",
    )
