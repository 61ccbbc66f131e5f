"""Google's token endpoint: refresh tokens and signed assertions of service accounts, for access tokens that expire."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from fakes.vertex_checks import RefusedError

_ASSERTION = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_GOOGLE = "https://oauth2.googleapis.com/token"  # google-auth says this, whatever the file's token_uri is
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_UNAUTHENTICATED = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential."
)


class Tokens:
    """Who may ask. `refresh_tokens` are those of users; `service_accounts` are PEM public keys by client e-mail."""

    def __init__(self, refresh_tokens: set[str], service_accounts: dict[str, str]) -> None:
        self.refresh_tokens, self.service_accounts = refresh_tokens, service_accounts
        self.grants = 0  # access tokens that the endpoint gave
        self._expiry: dict[str, float] = {}

    def issue(self, lifetime_s: float, token: str | None = None) -> str:
        """A new access token, or the given one made good."""
        token = token or f"ya29.{secrets.token_urlsafe(24)}"
        self._expiry[token] = time.time() + lifetime_s
        return token

    def revoke_all(self) -> None:
        self._expiry.clear()

    def check(self, authorization: str | None) -> None:
        """Refuse a missing, an unknown and an expired token."""
        kind, _, token = (authorization or "").partition(" ")
        if kind != "Bearer" or self._expiry.get(token, 0.0) <= time.time():
            raise RefusedError(401, "UNAUTHENTICATED", _UNAUTHENTICATED)

    def grant(self, form: Mapping[str, Any], audience: str, lifetime_s: float) -> tuple[int, dict[str, Any]]:
        """(status, JSON) of a request to the token endpoint."""
        try:
            self._check_grant(form, audience)
        except (KeyError, ValueError) as error:
            return 400, {"error": "invalid_grant", "error_description": f"Invalid grant: {error}"}
        self.grants += 1
        token = self.issue(lifetime_s)
        return 200, {"access_token": token, "expires_in": int(lifetime_s), "token_type": "Bearer", "scope": _SCOPE}

    def _check_grant(self, form: Mapping[str, Any], audience: str) -> None:
        if form.get("grant_type") == "refresh_token":
            if not form["client_id"] or not form["client_secret"] or form["refresh_token"] not in self.refresh_tokens:
                raise ValueError("Bad Request")
        elif form.get("grant_type") == _ASSERTION:
            self._check_assertion(form["assertion"], audience)
        else:
            raise ValueError("unsupported grant type")

    def _check_assertion(self, assertion: str, audience: str) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        head, claims, signature = assertion.split(".")
        said, now = json.loads(_decoded(claims)), time.time()
        if json.loads(_decoded(head))["alg"] != "RS256":
            raise ValueError("alg")
        key: Any = load_pem_public_key(self.service_accounts[said["iss"]].encode())
        try:
            key.verify(_decoded(signature), f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
        except InvalidSignature:
            raise ValueError("Invalid JWT Signature.") from None
        if said["aud"] not in (audience, _GOOGLE) or _SCOPE not in said["scope"].split():
            raise ValueError("aud or scope")
        if not said["iat"] <= now + 60 or not now < said["exp"] <= said["iat"] + 3600:
            raise ValueError("Token must be a short-lived token (60 minutes) and in a reasonable timeframe.")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
