"""What ``gateway doctor`` finds in the gate's own books: its counters while it runs, its ledger while not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from gateway.cache.ledger_repair import FORMAT
from gateway.cache.ledger_store import FILE
from gateway.enrolment import as_owner
from gateway.findings import Finding

_TORN: Final = 10
"""Codes. Now and then one is torn: a person pulls the card away."""

_COUNTERS: Final = {
    "gateway_reader_dropped_total": (
        _TORN,
        "reader {reader}",
        "{n} codes came torn or garbled since the gate was started",
        "cable, speed, suffix, layout: gateway setup learns them from the set-up code",
    ),
    "gateway_reader_slowed_total": (
        1,
        "reader {reader}",
        "slowed down {n} times: too many unknown codes",
        "look who stands there; if good cards are unknown: layout, strip_aim, or another venue's cards",
    ),
    "gateway_ledger_late_commits_total": (
        1,
        "disk",
        "{n} times too slow: the lane opened before the entry was on it",
        "a better card or disk; imports at a quieter hour; or a longer commit_deadline_ms",
    ),
    "gateway_answers_refused_total": (
        1,
        "news",
        "{n} answers were not signed by this gate's central, or not fresh",
        "if it goes on, see who is between; after a loss of the central's keys: gateway enroll",
    ),
    "gateway_epoch_conflicts_total": (
        1,
        "entries",
        "{n} times the central had others under our numbers: an old copy of this disk, or a twin, runs",
        "use one copy of a card, never two",
    ),
    "gateway_control_dropped_total": (
        1,
        "sockets",
        "{n} clients ({role}) were cut off, because they did not read",
        "mend that program; gateway support-bundle does not need it",
    ),
}
"""Counters that should stay at nothing: from how many on, what it is about, what it says, what to do."""


def counters(text: str) -> Iterator[Finding]:
    """Takes the gate's metrics, as its socket gives them."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            least, about, found, remedy = _COUNTERS.get(sample.name, (0, "", "", ""))
            if about and sample.value >= least:
                words = {**sample.labels, "n": int(sample.value)}
                yield Finding(about.format(**words), "warning", found.format(**words), remedy)
            elif (
                sample.name == "gateway_changes_total"
                and sample.labels.get("result") == "set_aside"
                and sample.value
            ):
                yield Finding(
                    "cards",
                    "warning",
                    f"{int(sample.value)} changed records could not be taken",
                    "journalctl -u gateway names them; correct them at the central",
                )


def refused(events: list[Any]) -> Iterator[Finding]:
    """Takes the events that the central refused, as the gate's socket gives them: the newest thousand."""
    if events:
        yield Finding(
            "entries",
            "warning",
            f"{len(events)} were refused by the central",
            "gateway ledger --refused shows them with the reason; tell the central's operator",
        )


def older_configuration(path: Path, text: str) -> Iterator[Finding]:
    """Whether the running gate has read the file as it is now."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "gateway_start_timestamp_seconds" and 0 < sample.value < path.stat().st_mtime:
                yield Finding(
                    "configuration",
                    "warning",
                    "was changed after the gate was started",
                    "systemctl restart gateway gateway-sync, or stop and start what runs it",
                )


def ledger(data_dir: Path, gateway: str) -> Iterator[Finding]:
    """The ledger's file, where no gate has it open. Nothing in it is changed."""
    path = data_dir / FILE
    if not path.exists():
        return
    try:
        with (
            as_owner(data_dir),
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as conn,
        ):
            version = conn.execute("PRAGMA user_version").fetchone()[0]
            meta = dict(conn.execute("SELECT key, value FROM meta WHERE key IN ('gateway', 'format')"))
            [(damage,), *_] = conn.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.Error as error:
        yield Finding(
            "ledger",
            "fault",
            f"{path} cannot be read: {error}",
            "start the gate: it sets the file aside and keeps what can be read; then replace the card",
        )
        return
    if version > FORMAT:
        yield Finding(
            "ledger",
            "fault",
            f"was written by a newer version (format {version}, this program knows {FORMAT})",
            "install the newer version again, as README.md says under Install",
        )
    elif damage != "ok":
        yield Finding(
            "ledger",
            "fault",
            f"{path} is damaged",
            "start the gate: it sets the file aside and keeps what can be read; then replace the card",
        )
    elif meta.get("gateway") != gateway:
        yield Finding(
            "ledger",
            "warning",
            f'was written as "{meta.get("gateway")}", and [gateway] id is "{gateway}"',
            "set id as it was; or, if this is the data_dir of another gateway, give this one its own",
        )
    else:
        yield Finding("ledger", "ok", "can be read")
