"""The snapshot's download: whatever cuts it, the gate gets the very file; only what is missing is sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable

import pytest
from aiohttp import web

from gateway.sync.fetch import NOTE_FILE, PART_FILE
from tests.sync.central_rig import Fault, answering, bomb, html, never, packed
from tests.sync.conftest import Rigs, carrying, until
from tests.sync.test_carrying import SHORT, record


def wanted(rigs: Rigs, content: bytes, etag: str = '"s1"') -> bytes:
    rigs.central.use_snapshot(content, etag)
    rigs.gate.want = {"at_least": None}
    return content


def left(rigs: Rigs) -> list[str]:
    return [path.name for path in rigs.state_dir.iterdir() if path.name.startswith("snapshot")]


def ranges(rigs: Rigs) -> list[tuple[str | None, str | None]]:
    return [
        (r["headers"].get("Range"), r["headers"].get("If-Range"))
        for r in rigs.central.requests
        if r["call"] == "snapshot"
    ]


def test_a_new_gateway_gets_its_first_snapshot(rigs: Rigs) -> None:
    """410 without a cursor, then the file, then changes from its cursor on; nothing is left in the spool."""
    rigs.gate.cursor = None
    rigs.gate.want_after_gone = True
    content = packed(1000)
    rigs.central.use_snapshot(content, '"s1"')

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files and rigs.central.held)
            rigs.do(rigs.central.change, record(1))
            await until(lambda: rigs.gate.records)

    asyncio.run(main())
    assert rigs.gate.files == [content]
    assert not left(rigs)
    gone = [r for r in rigs.central.requests if r["call"] == "changes" and "cursor" not in r["query"]]
    assert len(gone) <= 3


@pytest.mark.parametrize("cut_at", [1, 1000, 65_535, 65_536, 65_537, 200_001])
def test_a_cut_download_goes_on_where_it_was_cut(rigs: Rigs, cut_at: int) -> None:
    """Each answer brings so many bytes and breaks; the next asks for the rest of the same file."""
    content = wanted(rigs, packed(10_000 if cut_at > 1000 else 1 + cut_at // 20))
    rigs.central.cut_at = cut_at

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files, 40)

    asyncio.run(main())
    assert rigs.gate.files == [content]
    asked = ranges(rigs)
    assert len(asked) == -(-len(content) // cut_at)
    assert asked[0] == (None, None)
    assert asked[1:] == [(f"bytes={n * cut_at}-", '"s1"') for n in range(1, len(asked))]


def test_changes_and_events_go_on_during_a_download(rigs: Rigs) -> None:
    """A snapshot that is cut again and again holds up neither."""
    wanted(rigs, packed(20_000))
    rigs.central.cut_at = 20_000

    async def main() -> None:
        async with carrying(rigs):
            n = 0
            while not rigs.gate.files:
                n += 1
                rigs.gate.last = n
                rigs.do(rigs.central.change, record(n))
                await until(lambda n=n: rigs.gate.mark == n and len(rigs.gate.records) == n)  # type: ignore[misc]
            assert n > 1

    asyncio.run(main())


def test_a_download_goes_on_after_a_restart(rigs: Rigs) -> None:
    """What the sync had before it was ended is not sent again, and a whole file costs its last byte."""
    content = wanted(rigs, packed(10_000))
    rigs.central.always["snapshot"] = None
    rigs.central.cut_at = 100_000
    rigs.central.faults["snapshot"].extend([passing, *[answering(503, "busy", Retry_After="3600")] * 9])

    async def part() -> None:
        async with carrying(rigs):
            await until(lambda: len(ranges(rigs)) == 2)

    asyncio.run(part())
    assert (rigs.state_dir / PART_FILE).stat().st_size == 100_000
    rigs.central.faults.clear()
    rigs.central.cut_at = None
    rigs.gate.mute = True

    async def rest() -> None:
        async with carrying(rigs, gate_seconds=0.2):
            rigs.gate.mute = False
            await until(lambda: rigs.gate.files)

    asyncio.run(rest())
    assert rigs.gate.files == [content]
    assert ranges(rigs)[-1] == ("bytes=100000-", '"s1"')

    rigs.gate.files.clear()
    (rigs.state_dir / PART_FILE).write_bytes(content)
    (rigs.state_dir / NOTE_FILE).write_text(json.dumps({"etag": '"s1"', "size": len(content)}))
    rigs.gate.want = {"at_least": None}
    asyncio.run(rest())
    assert rigs.gate.files == [content]
    assert ranges(rigs)[-1] == (f"bytes={len(content) - 1}-", '"s1"')


async def passing(_: web.Request) -> None:
    """No fault."""


def test_a_file_that_has_changed_is_begun_anew(rigs: Rigs) -> None:
    """If-Range: the part of the old file is thrown away, not mixed with the new one."""
    wanted(rigs, packed(10_000))
    rigs.central.cut_at = 100_000
    new = packed(12_345)

    async def change(_: web.Request) -> None:
        rigs.central.cut_at = None
        rigs.central.use_snapshot(new, '"s2"')

    rigs.central.faults["snapshot"].extend([passing, change])

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    assert rigs.gate.files == [new]
    assert ranges(rigs) == [(None, None), ("bytes=100000-", '"s1"')]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"etag":5,"size":1}', b'{"etag":"\\"s1\\"","size":-1}'])
def test_a_spool_that_makes_no_sense_is_begun_anew(rigs: Rigs, note: bytes) -> None:
    """What a power cut or a hand left there is no reason to fail."""
    content = wanted(rigs, packed(100))
    (rigs.state_dir / NOTE_FILE).write_bytes(note)
    (rigs.state_dir / PART_FILE).write_bytes(b"x" * 7)

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    assert rigs.gate.files == [content]
    assert ranges(rigs) == [(None, None)]


@pytest.mark.parametrize(
    "fault",
    [
        answering(503, "building", Retry_After="0"),
        answering(429, "busy"),
        answering(500),
        answering(404, "not_found"),
        answering(416, "range"),
        html,
        bomb("gzip"),
        never,
    ],
    ids=["503", "429", "500", "404", "416", "html", "gzip", "never"],
)
def test_the_snapshot_arrives_after_any_fault(rigs: Rigs, fault: Fault) -> None:
    """Whatever was answered before."""
    content = wanted(rigs, packed(100))
    rigs.central.faults["snapshot"].extend([fault] * 2)

    async def main() -> None:
        async with carrying(rigs, limits=SHORT):
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    assert rigs.gate.files == [content]


def lying(rigs: Rigs, *, size: int, body: bytes, status: int = 200, begins: int | None = None) -> Fault:
    """An answer whose manifest, length or range is not true."""

    async def fault(_: web.Request) -> web.StreamResponse:
        manifest = json.loads(rigs.central.manifest(body)) | {"size": size}
        headers = {"Gateway-Manifest": base64.urlsafe_b64encode(json.dumps(manifest).encode()).decode()}
        headers |= {"Gateway-Signature": "k1:x", "ETag": '"s1"'}
        if begins is not None:
            headers["Content-Range"] = f"bytes {begins}-{size - 1}/{size}"
        return web.Response(body=body, status=status, headers=headers)

    return fault


@pytest.mark.parametrize(("status", "size", "begins"), [(200, 10, None), (206, 500, 7), (206, 500, None)])
def test_an_answer_that_is_no_part_of_the_file_is_thrown_away(
    rigs: Rigs, status: int, size: int, begins: int | None
) -> None:
    """More bytes than the manifest says, and ranges that nobody asked for, never reach the gate."""
    content = wanted(rigs, packed(100))
    fault = lying(rigs, size=size, body=bytes(400), status=status, begins=begins)
    rigs.central.faults["snapshot"].append(fault)

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: rigs.gate.files)
            assert courier.count("gateway_sync_refused_total", call="snapshot") == 1

    asyncio.run(main())
    assert rigs.gate.files == [content]


def test_a_snapshot_larger_than_the_disk_is_told(rigs: Rigs, logged: Callable[[], str]) -> None:
    """Nothing of it is written, and the log says what to do."""
    rigs.central.faults["snapshot"].append(lying(rigs, size=1 << 60, body=bytes(1 << 20)))
    content = wanted(rigs, packed(100))

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    assert rigs.gate.files == [content]
    text = logged()
    assert "bytes more are needed" in text
    assert "state_dir" in text


def test_a_spool_that_cannot_be_written_is_told(rigs: Rigs, logged: Callable[[], str]) -> None:
    """The rest goes on; when the folder is right again, the snapshot comes."""
    content = wanted(rigs, packed(100))
    (rigs.state_dir / PART_FILE).mkdir()

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: len(ranges(rigs)) >= 2)
            rigs.do(rigs.central.change, record(1))
            await until(lambda: rigs.gate.records)
            (rigs.state_dir / PART_FILE).rmdir()
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    assert rigs.gate.files == [content]
    assert logged().count("the snapshot cannot be kept") == 1


def test_a_file_that_the_gate_refuses_is_fetched_anew(rigs: Rigs) -> None:
    """From its first byte: what was refused may have been damaged here."""
    content = wanted(rigs, packed(5000))
    rigs.gate.refuse_files = 2

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: rigs.gate.files)
            assert courier.count("gateway_sync_refused_total", call="snapshot") == 2

    asyncio.run(main())
    assert rigs.gate.files == [content]
    assert ranges(rigs) == [(None, None)] * 3
    assert hashlib.sha256(rigs.gate.files[0]).digest() == hashlib.sha256(content).digest()


def test_at_least_and_keys_are_passed_on(rigs: Rigs) -> None:
    """The gate says how new the snapshot must be, and which keys it knows."""
    wanted(rigs, packed(10))
    rigs.gate.want = {"at_least": "h1-17"}

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.files)

    asyncio.run(main())
    [asked] = [r for r in rigs.central.requests if r["call"] == "snapshot"]
    assert asked["query"] == {"keys": "k1", "at_least": "h1-17"}
