"""The order of a conformance run: each part leaves the server as the next one needs it."""

from __future__ import annotations

from contextlib import suppress

from gateway.central.adminclient import CentralError
from gateway.central.conformance import changes, enrolment, events, snapshots
from gateway.central.conformance.client import Audit, Wire
from gateway.central.conformance.means import Means
from gateway.central.conformance.report import Report, need


def test(url: str, means: Means, report: Report, gone_cursors: list[str]) -> None:
    """Every point. Raises CentralError where the server cannot be reached or a means fails."""
    wire = Wire(url, Audit())
    try:
        wire.send("GET", "/v1/changes")
    except OSError as error:
        raise CentralError(f"no server answers at {url} ({error}); start it, or correct the URL") from None
    try:
        north, south = enrolment.enrol(report, wire, means)
        enrolment.general(report, north, south)
        changes.gone(report, north)
        cursor = snapshots.snapshot(report, north)
        enrolment.msgpack(report, north, cursor)
        enrolment.condition(report, north, means, cursor)
        changes.polls(report, north, means, cursor)
        cursor, position = changes.records(report, north, means, cursor)
        snapshots.at_least(report, north, cursor, position, changes.MARK)
        events.events(report, north, means)
        mark = events.usage(report, north, south, cursor)
        with report.point("`GET /v1/snapshot`", "it has the usage that presence still needs"):
            entry = need(mark, "an entry that was told as usage")
            client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
            _, last, _ = client.drain(since)
            snapshots.has_usage(client, str(last["next"]), entry)
        changes.commands(report, north, south, means, cursor)
        changes.deletions(report, north, means, cursor)
        changes.pages(report, north, means, cursor)
        changes.keys(report, north, means, cursor)
        enrolment.tokens(report, north, means, cursor)
        changes.foreign(report, north, gone_cursors)
        means.clean()
        enrolment.revoked(report, south or north, means, cursor)
        enrolment.guessing(report, wire)
        wire.audit.tell(report)
        if means.admin is not None and north is not None:
            means.revoke(north.gateway)
    except BaseException:
        with suppress(CentralError):  # what went wrong first is what matters
            means.clean()
        raise
