"""The rules that hold for every answer, watched over a whole run: each is one point of the report."""

from __future__ import annotations

from gateway.central.conformance.report import FAILED, NOT_TESTED, OK, Point, Report, shown

_GENERAL, _SIGNED, _EVERY = "In general", "Signatures", "Every signed answer says"
_CHANGES, _CURSORS = "`GET /v1/changes`", "Cursors"
_SIGNATURE = "a valid signature over the purpose, a line feed and the bytes of the body as sent"

RULES = {
    "encoding": (_GENERAL, "no answer has a Content-Encoding", "no Content-Encoding"),
    "type": (_GENERAL, "every body comes in a type that the request accepts", "a type from Accept"),
    "error": (_GENERAL, "every error says what it is", '{"error":"a sentence","code":"a_word"}'),
    "bytes": (_GENERAL, "an answer to /v1/changes is at most 262,144 bytes", "at most 262,144 bytes"),
    "records": (_GENERAL, "an answer to /v1/changes is at most 250 records", "at most 250 records"),
    "record": (_GENERAL, "a record is at most 65,536 bytes", "at most 65,536 bytes"),
    "signed": (_SIGNED, "every 200 of /v1/changes is signed", _SIGNATURE + ", purpose changes"),
    "signed gone": (_SIGNED, "every 410 of /v1/changes is signed", _SIGNATURE + ", purpose changes"),
    "signed revoked": (_SIGNED, "a 403 that says revoked is signed", _SIGNATURE + ", purpose changes"),
    "signed events": (_SIGNED, "every 200 of /v1/events is signed", _SIGNATURE + ", purpose events"),
    "signed snapshot": (_SIGNED, "every snapshot's manifest is signed", _SIGNATURE + ", purpose snapshot"),
    "gateway": (_EVERY, "gateway is the one that asks", "the id that enrolment gave"),
    "venue": (_EVERY, "venue is that of the enrolment", "the venue that enrolment gave"),
    "history": (_EVERY, "history is that of the enrolment, or of the 410 after it", "that history"),
    "nonce": (_EVERY, "nonce is that of the request", "the nonce of this very request"),
    "time": (_EVERY, "time is an instant with an offset, and never goes back", "the central's clock"),
    "have": (_EVERY, "have names the highest number for each epoch", '{"EPOCH": SEQ, …}'),
    "cursor": (_CURSORS, "a cursor is at most 128 printable ASCII characters", "1 to 128 of ! to ~"),
    "form": (_CHANGES, "every 200 has the fields of the page in their form", "the fields as shown"),
    "asked": (_CHANGES, "cursor is the one that was asked with", "the cursor of the request"),
    "once": (_CHANGES, "a record stands at most once in an answer", "each kind and id once"),
    "events form": (
        "`POST /v1/events`",
        "every 200 has the fields of the page in their form",
        "the fields as shown",
    ),
}


class Audit:
    """Which of the rules for every answer were seen to hold, and the first time that one did not."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = dict.fromkeys(RULES, 0)
        self._broken: dict[str, str] = {}

    def note(self, rule: str, holds: bool, came: object) -> None:
        self._seen[rule] += 1
        if not holds:
            self._broken.setdefault(rule, shown(came))

    def tell(self, report: Report) -> None:
        """A point for each rule."""
        for rule, (section, says, expected) in RULES.items():
            if rule in self._broken:
                report.add(Point(section, says, FAILED, expected, self._broken[rule]))
            elif self._seen[rule]:
                report.add(Point(section, says, OK))
            else:
                report.add(Point(section, says, NOT_TESTED, came="no such answer came"))
