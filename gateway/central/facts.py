"""What the store takes and gives: plain values. Instants are microseconds since 1970, as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True, frozen=True)
class VenueRow:
    id: str
    names: bool
    """Whether holders' names are sent to its gates."""
    history: str
    position: int


@dataclass(slots=True, frozen=True)
class Fault:
    """One record that breaks the rules. ``line`` counts from 1 over everything that was given."""

    line: int
    kind: str
    id: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.line}: {self.field}: {self.message}" if self.field else f"{self.line}: {self.message}"


@dataclass(slots=True, frozen=True)
class Put:
    """What became of records that were put."""

    count: int
    """Records that are now as they were given, those that already were included; 0 if nothing was done."""
    position: int
    """The venue's position after it."""
    faults: list[Fault]
    """The first of the bad ones."""
    bad: int = 0
    """How many were bad."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Unknown kinds, which are skipped, with how many of each there were."""


@dataclass(slots=True, frozen=True)
class Version:
    """One version of a record. ``body``: None where it was deleted, or a holder that has been forgotten."""

    at: int
    by: str
    body: dict[str, Any] | None

    @property
    def deleted(self) -> bool:
        return self.body is None


@dataclass(slots=True, frozen=True)
class Page:
    """A part of a venue's log, for one gateway."""

    records: list[bytes]
    """Each is the JSON of a record."""
    next_position: int
    more: bool


@dataclass(slots=True, frozen=True)
class SnapshotFile:
    """A snapshot file with what its manifest says; ``manifest`` is the JSON to be signed, byte for byte."""

    path: Path
    manifest: bytes
    venue: str
    history: str
    cursor: str
    position: int
    published: int
    count: int
    bytes: int
    size: int
    sha256: str


@dataclass(slots=True, frozen=True)
class Enrolled:
    gateway: str
    venue: str
    token: str


@dataclass(slots=True, frozen=True)
class GatewayRow:
    id: str
    venue: str
    revoked: bool
    machine: str | None
    """64 hex digits; None before it was enrolled."""
    hostname: str
    version: str
    enrolled_at: int | None
    seen_at: int | None
    condition: dict[str, Any] | None
    """The last that it said of itself."""


@dataclass(slots=True, frozen=True)
class Taken:
    """What became of a batch of events."""

    acknowledged: list[tuple[int, int, int]]
    """(epoch, first, last), contiguous."""
    refused: list[tuple[int, int, str]]
    """(epoch, seq, reason); 0 for a number that could not be read."""
    conflict: tuple[int, int] | None


@dataclass(slots=True, frozen=True)
class StoredEvent:
    number: int
    """In the order of arrival over everything; ask for what is above it."""
    received_at: int
    body: bytes
    """The JSON of the event as it was uploaded."""


@dataclass(slots=True, frozen=True)
class Conflict:
    """Something that an operator should look at.

    ``kind``: ``passback`` (the same person let into an area at two gateways with no exit between),
    ``instance`` (two computers on one identity), ``epoch`` (one number, two events).
    """

    number: int
    kind: str
    at: int
    """When it happened; for an ``instance``, when it was last seen."""
    venue: str
    gateways: list[str]
    detail: dict[str, Any]
    noted_at: int


@dataclass(slots=True, frozen=True)
class TokenRow:
    name: str
    role: str
    created_at: int


@dataclass(slots=True, frozen=True)
class KeyRow:
    id: str
    public: str
    """BASE64 of 32 bytes."""
    state: str
    """``announced``, ``present``, ``old`` or ``retired``."""
    created_at: int
