"""The order of a conformance run: each part leaves the server as the next one needs it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from gateway.central.adminclient import CentralError
from gateway.central.conformance import changes, enrolment, events, snapshots
from gateway.central.conformance.audit import Audit
from gateway.central.conformance.client import Wire
from gateway.central.conformance.means import Means
from gateway.central.conformance.report import Report


def examine(
    url: str, means: Means, report: Report, gone_cursors: list[str], only: Collection[str] = ()
) -> None:
    """Every point, or those of some parts. Joining comes first in any case.

    Raises CentralError where the server cannot be reached or a means fails.
    """
    wire = Wire(url, Audit())
    try:
        wire.send("GET", "/v1/changes")
    except OSError as error:
        raise CentralError(f"no server answers at {url} ({error}); start it, or correct the URL") from None

    def wanted(part: str) -> bool:
        return not only or part in only

    try:
        north, south = enrolment.enrol(report, wire, means)
        if wanted("general"):
            enrolment.general(report, north, south)
            changes.gone(report, north)
        cursor = snapshots.snapshot(report, north) if wanted("snapshot") else snapshots.cursor_of(north)
        if wanted("general"):
            enrolment.msgpack(report, north, cursor)
            enrolment.condition(report, north, means, cursor)
            changes.parameters(report, north, cursor)
        if wanted("waiting"):
            changes.polls(report, north, means, cursor)
        if wanted("changes"):
            cursor, position = changes.records(report, north, means, cursor)
            if wanted("snapshot"):
                snapshots.at_least(report, north, cursor, position, changes.MARK)
        if wanted("events"):
            events.events(report, north, means)
        if wanted("usage"):
            mark = events.usage(report, north, south, cursor)
            if wanted("snapshot"):
                snapshots.usage(report, north, cursor, mark)
        if wanted("commands"):
            changes.commands(report, north, south, means, cursor)
        if wanted("changes"):
            changes.deletions(report, north, means, cursor)
        if wanted("limits"):
            changes.pages(report, north, means, cursor)
            events.limits(report, north)
        if wanted("keys"):
            changes.keys(report, north, means, cursor)
        if wanted("tokens"):
            enrolment.tokens(report, north, means, cursor)
        means.clean()
        if wanted("revoked"):
            enrolment.revoked(report, south, means, cursor)
        if wanted("general"):
            changes.foreign(report, north, gone_cursors)
        if wanted("guessing"):
            enrolment.guessing(report, wire)
        wire.audit.tell(report)
        if means.admin is not None:
            for client in (north, south):
                if client is not None:
                    means.revoke(client.gateway)
    except BaseException:
        with suppress(CentralError):  # what went wrong first is what matters
            means.clean()
        raise
