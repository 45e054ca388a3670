"""A scan's bytes to the verdict at a visitor's display: over HTTP, with one display and with a thousand, and
in a browser to the page that shows it.

The floor is the verdict on the gate's own socket, as ``watch`` tells it, of the same scans: it has the wait
in it with which the gate lets commit and pulse go first. One scan at a time, one lane with its relay in
memory. Of a thousand displays the last one that has it counts; they are all read by this one process, which
takes its time too. The browser's clock is ours; it tells when the page has changed, before it is painted.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import joined, rig
from bench.row import Row, run_alone
from gateway.control import Client
from gateway.sync.display import WELCOME_MS

CARDS = 20_000
GAP = 0.05
"""Seconds between two scans."""
TARGET = 0.1
MANY = 1000


class Display:
    """One open stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer  # whose end would be the stream's

    async def verdict(self) -> float:
        """When the next verdict is here."""
        while b'"kind":"welcome"' not in await self._reader.readuntil(b"\n\n"):
            pass
        return time.perf_counter()


async def connect(port: int) -> Display:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /display/lane-0/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    while b'"kind":"idle"' not in await reader.readuntil(b"\n\n"):
        pass
    return Display(reader, writer)


async def over_http(
    gate: rig.Gate, port: int, cards: Iterator[int], displays: int, scans: int
) -> tuple[list[float], list[float]]:
    """Seconds from the bytes to the gate's own socket, and to the last of so many displays."""
    watch, asking = await asyncio.open_unix_connection(gate.data_dir / "admin.sock")
    asking.write(b'{"call":"watch"}\n')
    open_ = [await connect(port) for _ in range(displays)]

    async def told() -> float:
        while b'"verdict"' not in await watch.readline():
            pass
        return time.perf_counter()

    least, took = [], []
    for card in itertools.islice(cards, scans):
        await asyncio.sleep(GAP)
        waiting = [asyncio.create_task(work) for work in (told(), *(each.verdict() for each in open_))]
        await asyncio.sleep(0)
        began = time.perf_counter()
        os.write(gate.scanners[0].master, rig.code(card) + b"\r")
        first, *others = await asyncio.gather(*waiting)
        least.append(first - began)
        took.append(max(others) - began)
    return least, took


def in_browser(
    gate: rig.Gate, port: int, cards: Iterator[int], scans: int
) -> tuple[list[float], list[float]]:
    """Seconds from the bytes to the gate's own socket, and to the changed page."""
    from tests.browser import Browser

    least, took = [], []
    with tempfile.TemporaryDirectory() as folder, Client(gate.data_dir / "admin.sock") as watch:
        watch.call("watch")
        browser = Browser(Path(folder))
        tab = browser.tab(800, 480)
        tab.go(f"http://127.0.0.1:{port}/display/lane-0")
        tab.until("document.body.dataset.kind === 'idle'")
        changed = "new MutationObserver(() => { window.changed.push(Date.now()) })"
        tab.js(f"window.changed = []; {changed}.observe(words, {{ childList: true }}); 0")
        for card in itertools.islice(cards, scans):
            tab.js("window.changed = []; 0")
            time.sleep(GAP)
            began = time.time()
            os.write(gate.scanners[0].master, rig.code(card) + b"\r")
            while "verdict" not in watch._read():
                pass
            least.append(time.time() - began)
            tab.until("window.changed.length")
            took.append(tab.js("window.changed[0]") / 1e3 - began)
        browser.close()
    return least, took


def run(quick: bool) -> list[Row]:
    scans = 50 if quick else 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * MANY), hard))
    cards, rows = iter(range(CARDS)), []
    with rig.Gate(rig.fresh_data_dir("display", CARDS), 1, boards=False) as gate:
        with gate.config.open("a") as config:
            config.write('\n[web]\nlisten = "127.0.0.1:0"\n')
        sync = joined.sync(gate)
        try:
            listens = re.compile(r'"address":\["127\.0\.0\.1:(\d+)"\]')
            found = joined.until(lambda: listens.search(sync.log.read_text()), "the pages", 30)
            port = int(found[1])
            for displays in (1, MANY):
                time.sleep(WELCOME_MS / 1000 + 1)  # no display begins with the last verdict
                times = asyncio.run(over_http(gate, port, cards, displays, scans))
                rows += _rows(f"scan to {displays:,} display{'s' * (displays > 1)}", *times)
            if shutil.which("chromium"):
                time.sleep(WELCOME_MS / 1000 + 1)
                rows += _rows("scan to a page in Chromium", *in_browser(gate, port, cards, scans // 5))
        finally:
            sync.stop()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return rows


def _rows(what: str, floor: list[float], took: list[float]) -> list[Row]:
    rows = []
    for q, name in ((0.5, "p50"), (0.99, "p99")):
        least, here = rig.quantile(floor, q), rig.quantile(took, q)
        measured = f"{here * 1e3:.1f} ms ({(here - least) * 1e3:+.1f})"
        rows.append(
            Row(f"{what}, {name}", f"{least * 1e3:.1f} ms", measured, here / least, "100 ms", here <= TARGET)
        )
    return rows


if __name__ == "__main__":
    run_alone("display", __doc__, run)
