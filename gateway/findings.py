"""What ``gateway doctor`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: Literal["ok", "warning", "fault"]
    found: str
    remedy: str | None = None
