"""The gate process, as its sockets and the central's news see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gateway.cache.ledger import Ledger
from gateway.cache.snapshot import Applied, Snapshot
from gateway.config import Config
from gateway.gate import Gate
from gateway.metrics import Metrics
from gateway.model import Movement

T = TypeVar("T")


class Running(Protocol):
    """The gate process, as far as it can be asked and told."""

    config: Config
    metrics: Metrics
    gate: Gate
    ledger: Ledger
    snapshot: Snapshot | None
    synchronised: bool
    set_aside: list[str]
    input_faults: dict[str, str | None]

    @property
    def up(self) -> Mapping[str, bool]:
        """Readers by name, and whether their device is open."""

    @property
    def generation(self) -> int: ...

    def snapshot_age(self, now: int) -> int | None: ...

    def scrape(self) -> bytes: ...

    def movements(self, now: int) -> Iterator[Movement]: ...

    def work(self, do: Callable[[], T]) -> Future[T]:
        """Do this in the one thread for what takes long, after what it was asked for before."""

    def take_generation(self) -> Future[Snapshot | None]: ...

    def aside(self, path: Path, reason: str) -> None:
        """A generation that cannot be used."""

    def switch(self, snapshot: Snapshot, *, keep_before: bool = True) -> None: ...

    def recompile(self, *, usage: bool) -> None: ...

    def apply(self, records: list[dict[str, Any]], cursor: str | None) -> Future[Applied]: ...

    def wipe(self) -> None:
        """Forget every card: the central has revoked this gateway."""
