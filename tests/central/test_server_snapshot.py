"""GET /v1/snapshot of docs/protocol.md: one file, signed, the same bytes while the ETag is the same."""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import orjson
import pytest

from gateway.central.store import Store
from gateway.model import HOUR, SECOND
from tests.central.server_rig import Gate, Server, card


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("central")) as server:
        server.put({"kind": "holder", "id": "H1", "name": "A. Lind"}, *(card(n) for n in range(50)))
        yield server


@pytest.fixture(scope="module")
def gate(server: Server) -> Gate:
    return server.gate("north")


def current(gate: Gate) -> str:
    """The cursor of what there is now."""
    gate.records()
    return gate.cursor


def test_the_file_is_what_its_manifest_says(gate: Gate) -> None:
    """Digest, sizes and count are those of the file; the lines are the venue's records, without names."""
    answer = gate.snapshot(at_least=current(gate))
    manifest = gate.manifest(answer)
    assert answer.headers.get_content_type() == "application/gzip"
    assert "Content-Encoding" not in answer.headers
    assert set(manifest) == {
        *("venue", "history", "cursor", "position", "published", "count", "bytes", "size", "sha256")
    }
    assert (hashlib.sha256(answer.raw).hexdigest(), len(answer.raw)) == (manifest["sha256"], manifest["size"])
    unpacked = gzip.decompress(answer.raw)
    records = [orjson.loads(line) for line in unpacked.splitlines()]
    assert (len(unpacked), len(records)) == (manifest["bytes"], manifest["count"])
    assert card(3) in records
    assert {"kind": "holder", "id": "H1"} in records


def test_changes_go_on_from_the_file(gate: Gate, server: Server) -> None:
    """Its cursor is one that /v1/changes takes, and gives what came after."""
    cursor = gate.manifest(gate.snapshot())["cursor"]
    server.put(card(100))
    assert card(100) in gate.changes(cursor=cursor).body["records"]


def test_a_download_that_broke_off_goes_on(gate: Gate, server: Server) -> None:
    """Range gives the rest, If-Range with the ETag too; parts and manifest belong together."""
    whole = gate.snapshot()
    etag = whole.headers["ETag"]
    for start, end in ((0, 9), (10, len(whole.raw) - 1), (len(whole.raw) - 1, len(whole.raw) - 1)):
        part = gate.snapshot(Range=f"bytes={start}-{end}", If_Range=etag)
        assert part.status == 206
        assert part.raw == whole.raw[start : end + 1]
        assert part.headers["Content-Range"] == f"bytes {start}-{end}/{len(whole.raw)}"
        assert part.headers["ETag"] == etag
        assert gate.manifest(part) == gate.manifest(whole)
    assert gate.snapshot(Range="bytes=20-").raw == whole.raw[20:]
    assert gate.snapshot(Range="bytes=-5").raw == whole.raw[-5:]
    beyond = gate.snapshot(Range=f"bytes={len(whole.raw)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(whole.raw)}")
    counted = server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {server.token}"}).raw.decode()
    assert 'gateway_central_requests_total{call="/v1/snapshot",status="206"} 5.0' in counted
    assert 'gateway_central_requests_total{call="/v1/snapshot",status="416"} 1.0' in counted


def test_another_file_is_sent_from_its_beginning(gate: Gate) -> None:
    """Where If-Range names a file that is no more, the whole of the present one comes, not a part of it."""
    whole = gate.snapshot()
    for other in ('"0-0"', 'W/"0-0"', "Sat, 21 Nov 2020 10:00:00 GMT"):
        answer = gate.snapshot(Range="bytes=10-", If_Range=other)
        assert (answer.status, answer.raw) == (200, whole.raw)


def test_what_is_here_already_is_not_sent_again(gate: Gate) -> None:
    """If-None-Match with the ETag is 304; HEAD has the headers alone."""
    whole = gate.snapshot()
    same = gate.snapshot(If_None_Match=whole.headers["ETag"])
    assert (same.status, same.raw) == (304, b"")
    head = gate.snapshot("HEAD")
    assert (head.status, head.raw) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(whole.raw)
    assert gate.manifest(head) == gate.manifest(whole)


def test_at_least_is_kept(gate: Gate, server: Server) -> None:
    """With a cursor the file is not before it; 503 says when to ask again while it is being made."""
    for number in range(101, 104):
        server.put(card(number))
        cursor = current(gate)
        position = gate.changes().body["position"]
        assert gate.manifest(gate.snapshot("HEAD", at_least=cursor))["position"] >= position
    assert server.ask("GET", "/v1/snapshot?at_least=a%20b", headers=gate.headers()).code == "bad_request"


def test_a_file_without_somebody_who_is_deleted(gate: Gate, server: Server) -> None:
    """After a holder's deletion no file from before it is given out."""
    server.put({"kind": "holder", "id": "HGONE", "language": "en"})
    assert b"HGONE" in gzip.decompress(gate.snapshot(at_least=current(gate)).raw)
    assert server.admin("DELETE", "venues/main/records/holder/HGONE").status == 200
    assert b"HGONE" not in gzip.decompress(gate.snapshot().raw)


def test_much_change_and_age_make_a_new_file(server: Server) -> None:
    """A file that a tenth of the records has left behind, or that is old, is served and made anew."""
    venue = server.venue("anew")
    gate = server.gate("anew-1", venue)
    server.put(*(card(number) for number in range(200, 230)), venue=venue)
    for ahead in (0, 7 * HOUR):
        server.clock.ahead += ahead
        before = gate.manifest(gate.snapshot("HEAD"))
        until = time.monotonic() + 20
        while gate.manifest(gate.snapshot("HEAD"))["published"] == before["published"]:
            assert time.monotonic() < until
            time.sleep(0.05)
    assert gate.manifest(gate.snapshot("HEAD"))["count"] == 30


def test_a_file_from_before_the_first_load_is_not_served(server: Server) -> None:
    """A gate that joins after a large load gets the cards in a file, not by thousands of answers."""
    venue = server.venue("loaded")
    gate = server.gate("loaded-1", venue)
    assert gate.manifest(gate.snapshot())["count"] == 0
    server.put(*(card(number) for number in range(1000, 11_100)), venue=venue)
    server.clock.ahead += 60 * SECOND
    assert gate.manifest(gate.snapshot())["count"] == 10_100


def test_a_large_file_is_made_by_a_process_of_its_own(server: Server) -> None:
    """Beyond what is made in no time a child makes it, and what it makes is the same."""
    venue = server.venue("large")
    gate = server.gate("large-1", venue)
    server.put(*(card(number) for number in range(1000, 21_001)), venue=venue)
    records = gzip.decompress(gate.snapshot(at_least=current(gate)).raw).splitlines()
    assert len(records) == 20_001
    assert orjson.loads(records[0]) == card(1000)


def test_builders_wait_for_each_other(server: Server) -> None:
    """One that a killed central left at work, and the new central's: each makes its file whole."""
    server.put(*(card(number) for number in range(2000)), venue=server.venue("builders"))

    def build(_: int) -> int:
        with closing(Store.open(server.directory, serve=False)) as store:
            return max(store.build_snapshot("builders").count for _ in range(5))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(build, range(4))) == [2000] * 4


def test_a_failed_build_is_told_and_tried_again(server: Server) -> None:
    """While no file can be made it is 503 with Retry-After, and the log says why."""
    venue = server.venue("full")
    gate = server.gate("full-1", venue, here=False)
    folder = server.directory / "snapshots"
    kept = server.directory / "kept"
    folder.rename(kept)
    folder.write_bytes(b"")
    try:
        until = time.monotonic() + 20
        while not any("could not be made" in line for line in server.log.lines):
            answer = server.ask("GET", "/v1/snapshot", headers=gate.headers())
            assert (answer.status, answer.code) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) > 0
            assert time.monotonic() < until
    finally:
        folder.unlink()
        kept.rename(folder)
    assert any("snapshots" in line for line in server.log.lines if "could not be made" in line)


def test_the_file_is_there_when_the_server_has_started(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody has to ask first: after a start the venue's file is made."""
    data = tmp_path_factory.mktemp("started")
    store = Store.open(data)
    store.put("main", [card(1)], "test")
    store.close()
    with Server(data):
        until = time.monotonic() + 20
        while not list((data / "snapshots").glob("*.gz")):
            assert time.monotonic() < until
            time.sleep(0.02)
