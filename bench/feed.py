"""Feeds and snapshots for the benchmarks: as many cards as asked, the same for the same arguments.

A venue as it might be: two areas, an event to come, four products with four rules each, and for every card a
credential, an entitlement and a holder. One card in 97 is lost, one holder in 1009 blocked.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from bench.row import WORK

VENUE = b'{"kind":"venue","timezone":"Europe/Berlin","day_starts":"04:00","language":"de"}\n'
AREAS = (
    b'{"kind":"area","id":"hall","name":{"de":"Halle","en":"Hall"},"capacity":1000000}\n'
    b'{"kind":"area","id":"exh","name":{"de":"Ausstellung","en":"Exhibition"},"within":"hall"}\n'
)
EVENT = (
    b'{"kind":"event","id":"v26","tag":"vernissage","areas":["hall"],'
    b'"from":"2026-11-27T18:00:00+01:00","until":"2026-11-27T22:00:00+01:00"}\n'
)
HOURS = {
    "family": '"10:00-18:00"',
    "annual": '"09:00-18:00"',
    "staff": '"00:00-24:00"',
    "silver": '"08:00-10:00","16:00-20:00"',
}
"""By product. At noon silver's first rule does not hold, nor does its second; the third does."""
PRODUCTS = tuple(HOURS)
NOON = int(datetime(2026, 11, 18, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()) * 1_000_000
"""A Wednesday on which every card that is not lost or blocked is let in, in microseconds."""

_VERSION = 4
"""Goes up when the feed changes, so that old snapshots under ``bench/.work`` are built anew."""


def code_of(card: int) -> str:
    """The code of a card: ten characters that do not follow the card's number, all different."""
    return f"{card * 2654435761 % (1 << 40):010X}"


def lines(cards: int, *, holders: bool = True, shuffle: bool = True, seed: int = 1) -> Iterator[bytes]:
    """Venue, areas, event, products and ``cards`` times credential, entitlement and holder, in NDJSON.

    ``shuffle`` mixes the order within runs of some thousand cards, as an export of a database does.
    """
    rng = random.Random(seed)
    yield VENUE
    yield from AREAS.splitlines(keepends=True)
    yield EVENT
    yield from map(_product, PRODUCTS)
    for start in range(0, cards, 5000):
        run: list[bytes] = []
        for card in range(start, min(start + 5000, cards)):
            run.extend(_card(card, holders))
        if shuffle:
            rng.shuffle(run)
        yield from run


def write_feed(path: Path, cards: int, *, holders: bool = True, shuffle: bool = True, seed: int = 1) -> int:
    """Writes ``lines`` to a file; returns the number of records."""
    count = 0
    with path.open("wb", buffering=1 << 20) as out:
        for line in lines(cards, holders=holders, shuffle=shuffle, seed=seed):
            out.write(line)
            count += 1
    return count


def snapshot(cards: int) -> Path:
    """A data_dir with one generation of so many cards, through the importer; built once.

    A million cards are 230 MB and take half a minute, ten million 2.3 GB and some minutes.
    """
    folder = WORK / f"cards-{cards}-v{_VERSION}"
    if not folder.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        for old in WORK.glob(f"cards-{cards}-*"):
            shutil.rmtree(old)
        part = folder.with_suffix(".part")
        print(f"building a snapshot of {cards:,} cards in {folder} ...", file=sys.stderr)
        # In a process of its own, so that its memory is not the benchmark's.
        command = [sys.executable, "-m", "bench.feed", str(cards), str(part)]
        subprocess.run(command, check=True, cwd=WORK.parents[1])
        part.rename(folder)
    return folder


def fresh_data_dir(cards: int, name: str) -> Path:
    """An own data_dir with the snapshot of so many cards (a hard link of it) and no ledger."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for file in snapshot(cards).iterdir():
        if file.suffix in (".mdb", ".key"):
            os.link(file, folder / file.name)
    return folder


def _product(product: str) -> bytes:
    rules = (
        f'{{"areas":["hall"],"days":["tue","wed","thu","fri","sat","sun"],"hours":[{HOURS[product]}],'
        '"except":["2026-12-24"],"limits":[{"max":1,"per":"day"}],"guests":1},'
        '{"areas":["hall"],"during":"vernissage","early_minutes":60,"guests":1},'
        '{"areas":["hall"],"hours":["00:00-24:00"],"limits":[{"max":4,"per":"day"}]},'
        '{"areas":["exh"],"again_after_minutes":1}'
    )
    return (
        f'{{"kind":"product","id":"{product}","category":"membership","tier":"gold",'
        f'"name":{{"de":"Produkt {product}","en":"Product {product}"}},"grace_days":14,"rules":[{rules}]}}\n'
    ).encode()


def _card(card: int, holders: bool) -> list[bytes]:
    state = "lost" if card % 97 == 0 else "active"
    records = [
        f'{{"kind":"credential","id":"C{card:08d}","code":"{code_of(card)}","state":"{state}",'
        f'"entitlements":["E{card:08d}"]}}\n'.encode(),
        f'{{"kind":"entitlement","id":"E{card:08d}","product":"{PRODUCTS[card % len(PRODUCTS)]}",'
        f'"holder":"H{card:08d}","valid_from":"2026-01-{card % 28 + 1:02d}",'
        f'"valid_until":"2099-12-{card % 28 + 1:02d}","state":"active"}}\n'.encode(),
    ]
    if holders:
        blocked = "blocked" if card % 1009 == 0 else "active"
        records.append(
            f'{{"kind":"holder","id":"H{card:08d}","name":"Holder {card}","language":"de",'
            f'"state":"{blocked}"}}\n'.encode()
        )
    return records


def _build(cards: int, folder: Path) -> None:
    from gateway.cache.build import build

    shutil.rmtree(folder, ignore_errors=True)
    build(folder, lines(cards), source=f"{cards} cards", pace=0)


if __name__ == "__main__":
    _build(int(sys.argv[1]), Path(sys.argv[2]))
