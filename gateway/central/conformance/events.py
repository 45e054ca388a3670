"""Points about access events: each once, whatever is sent again."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from gateway.central.conformance.client import Client
from gateway.central.conformance.means import PREFIX, Means
from gateway.central.conformance.report import Failed, Report, expect, need
from gateway.sync import protocol as p

_SECTION = "`POST /v1/events`"
HOLDER = f"{PREFIX}holder"


def new_epoch() -> int:
    """As large as epochs are, so that a server that reads them as floating point is found out."""
    return secrets.randbits(62) | (1 << 62) | 1


def event(client: Client, epoch: int, seq: int, **fields: Any) -> dict[str, Any]:
    """An access event with a digest of its own."""
    return {
        "gateway": client.gateway,
        "epoch": epoch,
        "seq": seq,
        "digest": secrets.token_hex(8),
        "at": datetime.now(UTC).isoformat(),
        "kind": "open",
        "lane": f"{PREFIX}lane",
        **fields,
    }


def entry(client: Client, epoch: int, seq: int, **fields: Any) -> dict[str, Any]:
    """The scan of somebody who was let in."""
    somebody = {"credential": f"{PREFIX}card", "holder": HOLDER, "entitlement": f"{PREFIX}pass"}
    way = {"point": f"{PREFIX}in", "from": "outside", "to": f"{PREFIX}hall"}
    more = {"verdict": "granted", "product": f"{PREFIX}product", "guest": 0, "passage": "assumed"}
    return event(client, epoch, seq, **{"kind": "scan", **somebody, **way, **more, **fields})


def acknowledged(said: p.Uploaded) -> set[tuple[int, int]]:
    """(epoch, seq) of all that the ranges cover. Raises Failed."""
    covered: set[tuple[int, int]] = set()
    for epoch, first, last in said.acknowledged:
        expect(0 <= last - first < p.MAX_EVENTS, "ranges [epoch, first, last]", [epoch, first, last])
        covered |= {(epoch, seq) for seq in range(first, last + 1)}
    return covered


def _all(said: p.Uploaded, epoch: int, seqs: list[int]) -> None:
    expect(said.conflict is None, "conflict: null", said.conflict)
    expect(not said.refused, "refused: []", [list(one) for one in said.refused])
    came, wanted = acknowledged(said), {(epoch, seq) for seq in seqs}
    expect(came == wanted, f"acknowledged: exactly {seqs} of the epoch", sorted(seq for _, seq in came))


def _have(said: p.Uploaded, epoch: int, seq: int) -> None:
    have = (said.said.have or {}).get(epoch)
    expect(have == seq, f'have: {{"{epoch}": {seq}}}', have)


def events(report: Report, north: Client | None, means: Means) -> None:
    """Everything about batches."""
    epoch, batch = new_epoch(), []
    with report.point(_SECTION, "events are acknowledged, and have says the highest number"):
        client = need(north, "an enrolled gateway")
        batch = [event(client, epoch, seq) for seq in (1, 2, 3)]
        said = client.uploaded(batch)
        _all(said, epoch, [1, 2, 3])
        _have(said, epoch, 3)
    with report.point(_SECTION, "the same events again are acknowledged again"):
        said = need(north, "an enrolled gateway").uploaded(batch)
        _all(said, epoch, [1, 2, 3])
        _have(said, epoch, 3)
    with report.point(_SECTION, "what was sent twice is there once"):
        kept = means.kept_events(need(north, "an enrolled gateway").gateway, epoch)
        expect(
            sorted(one["seq"] for one in kept) == [1, 2, 3], "events 1, 2, 3", [one["seq"] for one in kept]
        )
    with report.point(_SECTION, "epoch and seq are kept to the last of 63 bits"):
        client, last = need(north, "an enrolled gateway"), (1 << 63) - 1
        wide = new_epoch()
        numbers = [(1 << 53) + 1, last - 1]
        said = client.uploaded([event(client, wide, seq) for seq in numbers])
        _all(said, wide, numbers)
        _have(said, wide, last - 1)
    with report.point(
        _SECTION, "a batch may have several epochs and gaps, and only what was sent is acknowledged"
    ):
        client, one, two = need(north, "an enrolled gateway"), new_epoch(), new_epoch()
        said = client.uploaded([event(client, one, 5), event(client, one, 9), event(client, two, 1)])
        came = acknowledged(said)
        expect(
            came == {(one, 5), (one, 9), (two, 1)},
            "5 and 9 of one epoch, 1 of the other",
            sorted(s for _, s in came),
        )
        _have(said, one, 9)
        _have(said, two, 1)
    with report.point(_SECTION, "events that come late, below those that are there, are taken too"):
        client, late = need(north, "an enrolled gateway"), new_epoch()
        client.uploaded([event(client, late, 8)])
        said = client.uploaded([event(client, late, 6), event(client, late, 7)])
        _all(said, late, [6, 7])
        _have(said, late, 8)
    _conflicts(report, north)
    _damaged(report, north)
    _kept(report, north, means)


def _conflicts(report: Report, north: Client | None) -> None:
    epoch = new_epoch()
    batch: list[dict[str, Any]] = []
    with report.point(_SECTION, "the same number with another digest is a conflict and is not acknowledged"):
        client = need(north, "an enrolled gateway")
        first = client.uploaded([event(client, epoch, 1), event(client, epoch, 3)])
        expect(
            acknowledged(first) == {(epoch, 1), (epoch, 3)},
            "acknowledged: 1 and 3",
            sorted(acknowledged(first)),
        )
        batch = [event(client, epoch, 2), event(client, epoch, 3), event(client, epoch, 4)]
        said = client.uploaded(batch)
        expect(said.conflict == (epoch, 3), f"conflict: {{epoch, seq: 3}} of epoch {epoch}", said.conflict)
        expect((epoch, 3) not in acknowledged(said), "3 not acknowledged", "3 acknowledged")
    with report.point(_SECTION, "what stands before a conflict is taken, what follows is not"):
        client = need(north, "an enrolled gateway")
        said = client.uploaded(need(batch or None, "a conflict"))
        came = acknowledged(said)
        expect(came == {(epoch, 2)}, "acknowledged: 2 alone", sorted(seq for _, seq in came))
        _have(said, epoch, 3)


def _damaged(report: Report, north: Client | None) -> None:
    with report.point(_SECTION, "a damaged event keeps its place and is never a conflict"):
        client, epoch = need(north, "an enrolled gateway"), new_epoch()

        def damaged(seq: int) -> dict[str, Any]:
            return {"gateway": client.gateway, "epoch": epoch, "seq": seq, "digest": None, "damaged": True}

        _all(client.uploaded([event(client, epoch, 1), damaged(2)]), epoch, [1, 2])
        _all(client.uploaded([damaged(1)]), epoch, [1])
        said = client.uploaded([event(client, epoch, 2)])
        _all(said, epoch, [2])
        _have(said, epoch, 2)


def _kept(report: Report, north: Client | None, means: Means) -> None:
    epoch = new_epoch()
    with report.point(_SECTION, "unknown kinds and fields of events are not refused"):
        client = need(north, "an enrolled gateway")
        strange = event(client, epoch, 1, kind="conformance", conformance={"unknown": [1, None, "å"]})
        _all(client.uploaded([strange], conformance=True), epoch, [1])
    with report.point(_SECTION, "unknown kinds and fields of events are kept"):
        [kept] = means.kept_events(need(north, "an enrolled gateway").gateway, epoch) or [{}]
        expect(kept.get("kind") == "conformance", "the kind: conformance", kept.get("kind"))
        expect(
            kept.get("conformance") == {"unknown": [1, None, "å"]},
            "its unknown field",
            kept.get("conformance"),
        )
    with report.point(_SECTION, "every event of a batch is acknowledged or refused with a reason"):
        client, odd = need(north, "an enrolled gateway"), new_epoch()
        said = client.uploaded([event(client, odd, 1), event(client, odd, 2, at=17), event(client, odd, 3)])
        judged = acknowledged(said) | {(e, s) for e, s, _ in said.refused}
        expect(
            judged == {(odd, 1), (odd, 2), (odd, 3)},
            "1 and 3 acknowledged, 2 refused or acknowledged",
            sorted(judged),
        )
        expect({(odd, 1), (odd, 3)} <= acknowledged(said), "1 and 3 acknowledged", sorted(acknowledged(said)))


def limits(report: Report, north: Client | None) -> None:
    """As many events as may be, and more."""
    with report.point("In general", "1,000 events in a request are taken"):
        client, epoch = need(north, "an enrolled gateway"), new_epoch()
        full = [event(client, epoch, seq) for seq in range(1, p.MAX_EVENTS + 1)]
        said = client.uploaded(full)
        expect(len(acknowledged(said)) == p.MAX_EVENTS, "1,000 acknowledged", len(acknowledged(said)))
    with report.point("In general", "more than 1,000 events in a request are too large"):
        client, epoch = need(north, "an enrolled gateway"), new_epoch()
        many = [event(client, epoch, seq) for seq in range(1, p.MAX_EVENTS + 2)]
        client.upload(many).expect(413, "too_large")
    with report.point("In general", "a request of more than 2,097,152 bytes is too large"):
        client, epoch = need(north, "an enrolled gateway"), new_epoch()
        wide = [event(client, epoch, 1, conformance="x" * p.MAX_UPLOAD)]
        client.upload(wide).expect(413, "too_large")


def usage(
    report: Report, north: Client | None, south: Client | None, cursor: str | None
) -> tuple[str, int, int] | None:
    """What the venue's other gates are told; gives the mark of an entry that holds."""
    section = "Other gates' entries"
    listener = south or north
    mark: tuple[str, int, int] | None = None
    epoch = new_epoch()
    if north is not None and south is not None and south.venue != north.venue:
        listener = north
    here = [cursor]

    def heard(wanted: tuple[str, int, int]) -> dict[str, Any]:
        client = need(listener, "an enrolled gateway")
        records, last, _ = client.drain(need(here[0], "a cursor"))
        here[0] = p.text(last, "next", 128)
        for record in records:
            if (record.get("gateway"), record.get("epoch"), record.get("seq")) == wanted:
                expect(record.get("kind") == "usage", "kind: usage", record.get("kind"))
                return record
        raise Failed(f"a usage record of {wanted}", f"{len(records)} other records")

    with report.point(section, "an entry that was assumed is told as usage, with its identity and time"):
        client = need(north, "an enrolled gateway")
        made = entry(client, epoch, 1)
        _all(client.uploaded([made]), epoch, [1])
        record = heard((client.gateway, epoch, 1))
        fields = ("credential", "holder", "entitlement", "from", "to", "passage")
        expect(
            all(record.get(name) == made[name] for name in fields),
            f"{', '.join(fields)} of the event",
            {name: record.get(name) for name in fields},
        )
        expect(p.instant(record, "at") == p.instant(made, "at"), f"at: {made['at']}", record.get("at"))
        mark = (client.gateway, epoch, 1)
    with report.point(section, "a passage that was taken is told with the identity and time of its scan"):
        client = need(north, "an enrolled gateway")
        scan = entry(client, epoch, 2, passage="pending")
        went = event(client, epoch, 3, kind="passage", of=2, passage="taken")
        _all(client.uploaded([scan, went]), epoch, [2, 3])
        record = heard((client.gateway, epoch, 2))
        expect(record.get("passage") == "taken", "passage: taken", record.get("passage"))
        expect(p.instant(record, "at") == p.instant(scan, "at"), f"at: {scan['at']}", record.get("at"))
    with report.point(section, "an annul tells it again as not taken"):
        client = need(north, "an enrolled gateway")
        _all(client.uploaded([event(client, epoch, 4, kind="annul", of=2)]), epoch, [4])
        record = heard((client.gateway, epoch, 2))
        expect(record.get("passage") == "not_taken", "passage: not_taken", record.get("passage"))
    with report.point(section, "a grant that nobody used is not told"):
        client = need(north, "an enrolled gateway")
        scan = entry(client, epoch, 5, passage="pending")
        unused = event(client, epoch, 6, kind="passage", of=5, passage="not_taken")
        _all(client.uploaded([scan, unused, entry(client, epoch, 7)]), epoch, [5, 6, 7])
        records, last, _ = need(listener, "an enrolled gateway").drain(need(here[0], "a cursor"))
        here[0] = p.text(last, "next", 128)
        told = {
            record.get("seq"): record.get("passage") for record in records if record.get("epoch") == epoch
        }
        expect(7 in told, "the usage of the entry beside it", told)
        expect(told.get(5) in (None, "not_taken"), "none, or one that was not taken", told)
    return mark
