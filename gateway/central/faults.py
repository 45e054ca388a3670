"""What can go wrong at the central, as its callers tell it apart. No message holds a code, name or token."""

from __future__ import annotations


class CentralError(Exception):
    """What the caller asked for cannot be done; the message says what and why."""


class NotFound(CentralError):
    """There is no such venue, record, gateway, key or token."""


class Refused(CentralError):
    """It would break a rule, or what is there already."""


class StoreUnusable(CentralError):
    """The data directory or the database cannot be used; the message names it and the remedy."""


class EnrolError(CentralError):
    """The enrolment code is unknown, used or expired."""


class TokenError(CentralError):
    """``code`` is ``bad_token``, ``token_used_up`` or ``other_machine``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
