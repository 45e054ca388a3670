"""``gateway run``: gate and sync side by side, neither of which goes down with the other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.rig import ROOT, Json, Site, card, product, until, venue
from tests.e2e.test_demo import processes

WAIT = 60.0


@contextmanager
def running(here: Site) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], list[Json]]]]:
    """``gateway run`` on that site, with its pages on any port; its process, and what was logged so far."""
    here.config.write_text(f'{here.config.read_text()}\n[web]\nlisten = "127.0.0.1:0"\n')
    errors = here.folder / "run.err"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "run", "--config", here.config],
            stdin=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
        )
    try:
        yield process, lambda: [json.loads(line) for line in errors.read_text().splitlines()]
        process.terminate()
        assert process.wait(WAIT) == 0, errors.read_text()
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        until(lambda: not processes(here.folder), "nothing lives on", WAIT)


def pages(log: list[Json]) -> str:
    """Where the newest sync has its pages."""
    [*_, address] = [line["address"][0] for line in log if line["event"] == "pages"] or [""]
    return f"http://{address}"


def scraped(url: str) -> str:
    """The text for Prometheus, empty while nobody serves it."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except (OSError, ValueError):
        return ""


def site_with_card(site: Callable[..., Site], **tables: object) -> Site:
    here = site(({"name": "north", "second_grant": "extend"},), **tables)
    here.imports([*venue(), product("open"), *card(1, "OPEN", "open")])
    return here


def test_a_sync_that_dies_does_not_touch_the_gate(site: Callable[..., Site]) -> None:
    """Without a central too there is a page for Prometheus. The sync is killed: the gate goes on as the same
    process, and the sync comes back with its page."""
    here = site_with_card(site)
    with running(here) as (_, log):
        until(lambda: "gateway_gate_up 1" in scraped(pages(log())), "a scrape", WAIT)
        (gate,) = processes(here.folder, "gate")
        (sync,) = processes(here.folder, "sync")
        before = pages(log())
        os.kill(sync, signal.SIGKILL)
        assert here.scan("in", "OPEN")["verdict"] == "granted"
        here.pulses(1)
        until(lambda: pages(log()) != before, "the page is back", WAIT)
        until(lambda: "gateway_gate_up 1" in scraped(pages(log())), "a scrape", WAIT)
        assert processes(here.folder, "gate") == [gate]
        [told] = [line for line in log() if line["event"] == "ended"]
        assert (told["of"], told["status"]) == ("sync", "SIGKILL")


def test_a_gate_that_dies_comes_back_beside_the_same_sync(site: Callable[..., Site]) -> None:
    """The gate is killed: the page says that it is down, then that it is up again; the sync stays."""
    here = site_with_card(site)
    with running(here) as (_, log):
        until(lambda: "gateway_gate_up 1" in scraped(pages(log())), "a scrape", WAIT)
        (gate,) = processes(here.folder, "gate")
        (sync,) = processes(here.folder, "sync")
        os.kill(gate, signal.SIGKILL)
        until(lambda: set(processes(here.folder, "gate")) - {gate}, "another gate", WAIT)
        until(lambda: "gateway_gate_up 1" in scraped(pages(log())), "a scrape", WAIT)
        assert processes(here.folder, "sync") == [sync]


def test_codes_from_standard_input(site: Callable[..., Site]) -> None:
    """A reader that is standard input reads that of ``run``."""
    here = site_with_card(site, readers=({"name": "in", "point": "north-in", "driver": "stdin"},))
    with running(here) as (process, _):
        assert process.stdin is not None
        until((here.folder / "a").exists, "its sockets are there", WAIT)
        process.stdin.write(b"OPEN\n")
        process.stdin.flush()
        here.pulses(1)


def test_only_one_on_a_data_dir(site: Callable[..., Site]) -> None:
    """A second one ends with 2, says why, and leaves the first alone."""
    here = site_with_card(site)
    with running(here) as (_, log):
        until(lambda: "gateway_gate_up 1" in scraped(pages(log())), "a scrape", WAIT)
        second = subprocess.run(
            [sys.executable, "-m", "gateway", "run", "--config", here.config],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert second.returncode == 2
        assert re.search(f"another gate runs on {re.escape(str(here.data_dir))}", second.stderr)
        assert "gate ended with status 2 before it was ready" in second.stderr
        assert here.scan("in", "OPEN")["verdict"] == "granted"


def test_it_is_ready_when_both_are(site: Callable[..., Site]) -> None:
    """READY=1 comes up to whoever started it, once."""
    here = site_with_card(site)
    here.config.write_text(f'{here.config.read_text()}\n[web]\nlisten = "127.0.0.1:0"\n')
    fork = here.fork("run")
    fork.ready()
    assert processes(here.folder, "gate")
    assert processes(here.folder, "sync")
    fork.signal(signal.SIGTERM)
    assert fork.wait(WAIT) == 0
    assert not processes(Path(here.folder), "sync")
