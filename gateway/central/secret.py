"""What is drawn: tokens and codes, of which the database keeps SHA-256 digests alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Thirty-two that nobody mistakes for each other when they are read out: 5 bits each."""
_CODE_LETTERS = 12


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def admin_token() -> str:
    return secrets.token_urlsafe(32)


def enrolment_code() -> str:
    """60 bits, in groups of four: K7QM-2XPD-94HV."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LETTERS))
    return "-".join(letters[start : start + 4] for start in range(0, _CODE_LETTERS, 4))


def enrolment_digest(code: str) -> str:
    """The same for every way in which the code may be typed."""
    return digest("".join(letter for letter in code.upper() if letter in _LETTERS))


class TokenMaker:
    """Gateways' tokens: 256 random bits, with the number and a MAC.

    A central that was restored from a backup does not know the tokens that it gave after it. The MAC proves
    that they are its own, for that gateway on that machine, so that gateways need not be enrolled anew.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, gateway: str, number: int, machine: str) -> str:
        name = base64.urlsafe_b64encode(gateway.encode()).decode().rstrip("=")
        head = f"{name}.{number}.{secrets.token_urlsafe(32)}"
        return f"{head}.{self._mac(head, machine)}"

    def genuine(self, token: str, machine: str) -> tuple[str, int] | None:
        """Gateway and number of a token that was made here for this machine."""
        head, _, mac = token.rpartition(".")
        expected = self._mac(head, machine).encode()
        if not hmac.compare_digest(mac.encode(errors="surrogatepass"), expected):
            return None
        name, number, _ = head.split(".")
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode(), int(number)

    def _mac(self, head: str, machine: str) -> str:
        text = f"token\n{machine}\n{head}".encode(errors="surrogatepass")
        mac = hmac.digest(self._key, text, "sha256")
        return base64.urlsafe_b64encode(mac[:16]).decode().rstrip("=")
