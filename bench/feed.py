"""Feeds for the benchmarks: NDJSON of as many cards as asked, the same for the same arguments."""

from __future__ import annotations

import random
from pathlib import Path

VENUE = b'{"kind":"venue","timezone":"Europe/Berlin","day_starts":"04:00","language":"de"}\n'
AREAS = (
    b'{"kind":"area","id":"hall","name":{"de":"Halle","en":"Hall"},"capacity":800}\n'
    b'{"kind":"area","id":"exh","name":{"de":"Ausstellung","en":"Exhibition"},"within":"hall"}\n'
)
PRODUCTS = ("family", "annual", "staff", "silver")


def code_of(card: int) -> str:
    """The code of a card: ten characters that do not follow the card's number, all different."""
    return f"{card * 2654435761 % (1 << 40):010X}"


def write_feed(path: Path, cards: int, *, holders: bool = True, shuffle: bool = True, seed: int = 1) -> int:
    """Writes venue, areas, products and ``cards`` times credential, entitlement and holder.

    ``shuffle`` mixes the order within runs of some thousand cards, as an export of a database does. Returns
    the number of records.
    """
    rng = random.Random(seed)
    count = 0
    with path.open("wb", buffering=1 << 20) as out:
        out.write(VENUE + AREAS)
        count += 3
        for product in PRODUCTS:
            out.write(_product(product))
            count += 1
        for start in range(0, cards, 5000):
            lines = []
            for card in range(start, min(start + 5000, cards)):
                lines.extend(_card(card, holders))
            if shuffle:
                rng.shuffle(lines)
            out.write(b"".join(lines))
            count += len(lines)
    return count


def _product(product: str) -> bytes:
    rules = (
        '{"areas":["hall"],"days":["tue","wed","thu","fri","sat","sun"],"hours":["10:00-18:00"],'
        '"limits":[{"max":1,"per":"day"}],"guests":1},'
        '{"areas":["hall"],"hours":["00:00-24:00"],"limits":[{"max":4,"per":"day"}]},'
        '{"areas":["exh"],"again_after_minutes":1}'
    )
    return (
        f'{{"kind":"product","id":"{product}","category":"membership","tier":"gold",'
        f'"name":{{"de":"Produkt {product}","en":"Product {product}"}},"grace_days":14,"rules":[{rules}]}}\n'
    ).encode()


def _card(card: int, holders: bool) -> list[bytes]:
    state = "lost" if card % 97 == 0 else "active"
    lines = [
        f'{{"kind":"credential","id":"C{card:08d}","code":"{code_of(card)}","state":"{state}",'
        f'"entitlements":["E{card:08d}"]}}\n'.encode(),
        f'{{"kind":"entitlement","id":"E{card:08d}","product":"{PRODUCTS[card % len(PRODUCTS)]}",'
        f'"holder":"H{card:08d}","valid_from":"2026-01-{card % 28 + 1:02d}",'
        f'"valid_until":"2027-12-{card % 28 + 1:02d}","state":"active"}}\n'.encode(),
    ]
    if holders:
        blocked = "blocked" if card % 1009 == 0 else "active"
        lines.append(
            f'{{"kind":"holder","id":"H{card:08d}","name":"Holder {card}","language":"de",'
            f'"state":"{blocked}"}}\n'.encode()
        )
    return lines
