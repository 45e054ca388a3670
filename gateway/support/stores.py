"""What the stores say of themselves: sizes, counts, formats, generations. No row of a store is in it."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from gateway.cache import generations
from gateway.cache.ledger_repair import FORMAT as LEDGER_FORMAT
from gateway.cache.ledger_store import FILE as LEDGER
from gateway.cache.snapshot import Snapshot
from gateway.config import Config
from gateway.enrolment import as_owner
from gateway.host import lock_data_dir
from gateway.sync.client import MACHINE_FILE, TOKEN_FILE
from gateway.trust import load as load_trust

_KNOWN = re.compile(
    r"snapshot-\d{8,}\.mdb(-lock|\.part)?|ledger(-broken-\d{8}T\d{6}Z(-\d{1,3})?)?\.db(-wal|-shm)?|code\.key|central\.json|"
    r"commands\.json|operators\.json|gate\.lock|\.build\.lock|(admin|sync)\.sock|token|machine|snapshot\.(part|note)|sync"
)


def files(folder: Path) -> list[dict[str, Any]]:
    """Names, sizes, rights and times of the gateway's own files; the others without their names."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            status = entry.stat(follow_symlinks=False)
            found.append(
                {
                    "name": entry.name if _KNOWN.fullmatch(entry.name) else "(another file)",
                    "bytes": status.st_size,
                    "on_disk": status.st_blocks * 512,
                    "mode": f"{status.st_mode:o}",
                    "owner": [status.st_uid, status.st_gid],
                    "changed_us": status.st_mtime_ns // 1000,
                }
            )
    return found


def ledger(data_dir: Path) -> dict[str, Any]:
    """Counts of the ledger's rows, read beside a running gate as any other reader. Raises sqlite3.Error."""
    path = data_dir / LEDGER
    if not path.exists():
        return {"there": False}
    with as_owner(data_dir), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as conn:
        one = conn.execute
        tables = [
            name for (name,) in one("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        ]
        return {
            "format": one("PRAGMA user_version").fetchone()[0],
            "format_of_this_program": LEDGER_FORMAT,
            "page_size": one("PRAGMA page_size").fetchone()[0],
            "pages": one("PRAGMA page_count").fetchone()[0],
            "pages_free": one("PRAGMA freelist_count").fetchone()[0],
            "journal_mode": one("PRAGMA journal_mode").fetchone()[0],
            "rows": {t: one(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in tables if t.isidentifier()},
            "events": dict(one("SELECT kind, count(*) FROM event GROUP BY kind").fetchall()),
            "seq": list(one("SELECT min(seq), max(seq) FROM event").fetchone()),
            "at_us": list(one("SELECT min(at), max(at) FROM event").fetchone()),
        }


def snapshots(data_dir: Path, *, running: bool) -> dict[str, Any]:
    """The generations, and the counts of the newest. A second process on an open LMDB is a trap: while a gate
    runs, its own status has the counts. Raises DataDirError, CodeKeyError, SnapshotError."""
    numbers = generations.numbers(data_dir)
    found: dict[str, Any] = {
        "generations": [
            {"number": number, "whole": generations.passes(generations.path_of(data_dir, number))}
            for number in numbers
        ]
    }
    if running or not numbers:
        return found
    with as_owner(data_dir):
        lock = lock_data_dir(data_dir)
        try:
            snapshot = Snapshot.open(data_dir)
            if snapshot is not None:
                with closing(snapshot):
                    counts = snapshot.counts()
                    found["in_use"] = {
                        "generation": snapshot.generation,
                        "published_us": snapshot.published,
                        "position": snapshot.position,
                        "credentials": counts.credentials,
                        "entitlements": counts.entitlements,
                        "holders": counts.holders,
                        "blocked": counts.blocked,
                        "usages": counts.usages,
                    }
        finally:
            os.close(lock)
    return found


def trust(data_dir: Path) -> dict[str, Any] | None:
    """Which central is believed; of its keys only how many. Raises TrustError."""
    with as_owner(data_dir):
        found = load_trust(data_dir)
    if found is None:
        return None
    pinned = found.pinned
    return {
        "gateway": pinned.gateway,
        "venue": pinned.venue,
        "url": pinned.url,
        "keys": len(pinned.keys),
        "owed_from": pinned.owed_from,
        "new_epoch": pinned.new_epoch,
        "want_snapshot": pinned.want_snapshot,
        "revoked": pinned.revoked,
    }


def secrets(config: Config) -> list[str]:
    """What is known to be secret here, to be looked for in all that was gathered; never written anywhere."""
    data_dir, state_dir = config.gateway.data_dir, config.state_dir
    found = []
    for path in (state_dir / TOKEN_FILE, state_dir / MACHINE_FILE, data_dir / "code.key"):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        found += [data.hex(), data.decode("latin-1").strip()]
    central = config.central
    for key in (central.client_key, central.client_cert) if central is not None else ():
        try:
            lines = key.read_text(errors="replace").splitlines() if key is not None else []
        except OSError:
            continue
        found += [line for line in lines if line and not line.startswith("-----")]
    return found
