"""What happened, as the judgement asks for it: here (the ledger) and elsewhere (the snapshot's usage)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.decide import Quiet
from gateway.model import AccessEvent, Credential, Holder, Movement


class Snapshot(Protocol):
    """What the central said, as the gate asks for it."""

    def find(self, code: bytes) -> Credential | None: ...

    def holder(self, id_: str) -> Holder | None: ...

    def movements_of_person(self, person: str, since: int) -> Sequence[Movement]: ...

    def movements_of_entitlement(self, entitlement: str, since: int) -> Sequence[Movement]: ...

    @property
    def has_usage(self) -> bool: ...


class Ledger(Protocol):
    """What happened here, as the gate writes and asks for it."""

    def record(self, event: AccessEvent, then: Callable[[bool], None] | None = None) -> None: ...

    def person(self, person: str, since: int) -> Sequence[Movement]: ...

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]: ...

    def quiet(self, person: str, entitlement: str, since: int) -> bool: ...


class Past:
    """What happened, here and elsewhere: the ledger's movements and the snapshot's usage in one order."""

    def __init__(self, ledger: Ledger, gateway: str, holds: Callable[[int, int], bool] | None) -> None:
        """``holds``: whether the ledger has the movement of this gateway's event (epoch, seq); None: no."""
        self._ledger = ledger
        self._gateway = gateway
        self._holds = holds
        self.snapshot: Snapshot | None = None

    def person(self, person: str, since: int) -> Sequence[Movement]:
        snapshot, here = self.snapshot, self._ledger.person(person, since)
        usage = None if snapshot is None else snapshot.movements_of_person(person, since)
        return self._merged(here, usage) if usage else here

    def entitlement(self, entitlement: str, since: int) -> Sequence[Movement]:
        snapshot, here = self.snapshot, self._ledger.entitlement(entitlement, since)
        usage = None if snapshot is None else snapshot.movements_of_entitlement(entitlement, since)
        return self._merged(here, usage) if usage else here

    @property
    def quiet(self) -> Quiet:
        """How to ask who has not moved; to be taken anew when the snapshot, or whether it has usage, is
        another. So no scan pays for that question."""
        return _unsure if self.snapshot is not None and self.snapshot.has_usage else self._ledger.quiet

    def _merged(self, here: Sequence[Movement], usage: Sequence[Movement]) -> Sequence[Movement]:
        elsewhere = [m for m in usage if not self.is_own(m)]
        return sorted((*elsewhere, *here), key=_at) if elsewhere else here

    def is_own(self, usage: Movement) -> bool:
        """Whether a usage record tells of an event that stands in this gateway's own ledger."""
        if self._holds is None or usage.source is None:
            return False
        gateway, _, number = usage.source.partition(f"{self._gateway}/")
        epoch, _, seq = number.partition("/")
        return not gateway and epoch.isdecimal() and seq.isdecimal() and self._holds(int(epoch), int(seq))


def _unsure(_person: str, _entitlement: str, _since: int) -> bool:
    return False


def _at(movement: Movement) -> int:
    return movement.at
