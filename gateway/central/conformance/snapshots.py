"""Points about the snapshot file."""

from __future__ import annotations

import hashlib
import zlib
from contextlib import suppress
from dataclasses import dataclass

import orjson

from gateway.central.conformance.client import Client, Reply, manifest_bytes
from gateway.central.conformance.report import Failed, Report, expect, need
from gateway.sync import protocol as p
from gateway.sync.protocol import ProtocolError

_SECTION = "`GET /v1/snapshot`"


@dataclass(slots=True)
class Lines:
    """What a snapshot file holds."""

    count: int
    length: int
    records: list[bytes]


def snapshot(report: Report, north: Client | None) -> str | None:
    """The file and all that is said of it; gives its cursor."""
    reply: Reply | None = None
    manifest: p.Manifest | None = None
    with report.point(_SECTION, "the venue's records come as one gzip file"):
        answer = need(north, "an enrolled gateway").snapshot().expect(200)
        kind = answer.headers.get("Content-Type", "")
        expect(kind.partition(";")[0].strip().lower() == p.SNAPSHOT, p.SNAPSHOT, kind)
        reply = answer
    with report.point(_SECTION, "the manifest says venue, history, cursor, position, published and the sums"):
        manifest = _manifest(need(reply, "a snapshot"))
        client = need(north, "an enrolled gateway")
        expect(manifest.venue == client.venue, f"venue: {client.venue}", manifest.venue)
        expect(manifest.history == client.history, f"history: {client.history}", manifest.history)
        expect(
            bool(p.CURSOR.fullmatch(manifest.cursor)), "a cursor of 1 to 128 printable ASCII", manifest.cursor
        )
    with report.point(_SECTION, "size and sha256 are those of the file as sent"):
        said, body = need(manifest, "a manifest"), need(reply, "a snapshot").body
        expect(said.size == len(body), f"size: {len(body)}", said.size)
        digest = hashlib.sha256(body).hexdigest()
        expect(said.sha256 == digest, f"sha256: {digest}", said.sha256)
    with report.point(_SECTION, "count and bytes are those of the lines in it, each of them a record"):
        said, lines = need(manifest, "a manifest"), unpack(need(reply, "a snapshot").body)
        expect(said.count == lines.count, f"count: {lines.count}", said.count)
        expect(said.bytes == lines.length, f"bytes: {lines.length}", said.bytes)
    with report.point(_SECTION, "the same ETag stands for the same bytes"):
        client, before = need(north, "an enrolled gateway"), need(reply, "a snapshot")
        tag = before.headers.get("ETag", "")
        expect(tag.startswith('"'), 'a strong ETag like "abc"', tag or "none")
        after = client.snapshot().expect(200)
        if after.headers.get("ETag") == tag:
            expect(after.body == before.body, "the same bytes", "others")
    with report.point(_SECTION, "a Range gives exactly these bytes"):
        client = need(north, "an enrolled gateway")
        need(reply, "a snapshot")
        for _ in range(5):  # the file may be made anew between two requests, and then it is tried again
            if _ranges(client):
                break
        else:
            raise Failed("a file that stays for some seconds", "another ETag each time")
    with report.point(_SECTION, "a Range of another ETag gives the whole file"):
        client = need(north, "an enrolled gateway")
        need(reply, "a snapshot")
        headers = {"Range": "bytes=5-9", "If-Range": '"conformance-another-file"'}
        answer = client.snapshot(headers=headers).expect(200)
        said = _manifest(answer)
        expect(len(answer.body) == said.size, f"{said.size} bytes", f"{len(answer.body)} bytes")
    return manifest.cursor if manifest else None


def at_least(
    report: Report, north: Client | None, cursor: str | None, position: int | None, id_: str
) -> None:
    """A file that must have a change which was just made."""
    with report.point(_SECTION, "with at_least the file is not before that cursor, and has what was changed"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor after a change")
        answer = client.snapshot(since).expect(200)
        said = _manifest(answer)
        expect(said.position >= need(position, "a position"), f"position at least {position}", said.position)
        marks = [orjson.loads(line) for line in unpack(answer.body, f'"{id_}"').records]
        expect(any(m.get("id") == id_ for m in marks), f"the record {id_}", "a file without it")
    with report.point(_SECTION, "the cursor of its manifest goes on with what came later"):
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor after a change")
        said = _manifest(client.snapshot(since).expect(200))
        records, last, _ = client.drain(said.cursor)
        expect(
            p.whole(last, "position") >= said.position,
            f"position at least {said.position}",
            last.get("position"),
        )
        double = [record.get("id") for record in records if record.get("id") == id_]
        expect(not double, f"nothing that the file has: no {id_}", double)


def usage(
    report: Report, north: Client | None, cursor: str | None, mark: tuple[str, int, int] | None
) -> None:
    """A file with an entry that presence still needs."""
    with report.point(_SECTION, "it has the usage that presence still needs"):
        entry = need(mark, "an entry that was told as usage")
        client, since = need(north, "an enrolled gateway"), need(cursor, "a cursor")
        _, last, _ = client.drain(since)
        answer = client.snapshot(p.text(last, "next", 128)).expect(200)
        found = [orjson.loads(line) for line in unpack(answer.body, '"usage"').records]
        names = [(u.get("gateway"), u.get("epoch"), u.get("seq")) for u in found]
        expect(entry in names, f"the usage {entry}", f"{len(names)} others")


def cursor_of(north: Client | None) -> str | None:
    """The cursor of the file, where the file itself is not what is tested."""
    with suppress(Failed, ProtocolError):
        return _manifest(north.snapshot().expect(200)).cursor if north is not None else None
    return None


def _ranges(client: Client) -> bool:
    """Whether parts of one file could be had. Raises Failed where they are not those of the file."""
    whole = client.snapshot().expect(200)
    size, tag = len(whole.body), whole.headers.get("ETag", "")
    for first, last, wanted in (
        (0, 9, "bytes=0-9"),
        (size // 2, size - 1, f"bytes={size // 2}-{size - 1}"),
        (size // 3, size - 1, f"bytes={size // 3}-"),
    ):
        part = client.snapshot(headers={"Range": wanted, "If-Range": tag})
        if part.status == 200 and part.headers.get("ETag") != tag:
            return False
        part.expect(206)
        expect(part.body == whole.body[first : last + 1], f"the bytes {first} to {last}", "others")
        where = part.headers.get("Content-Range", "")
        expect(where == f"bytes {first}-{last}/{size}", f"bytes {first}-{last}/{size}", where)
    return True


def _manifest(reply: Reply) -> p.Manifest:
    raw = manifest_bytes(reply)
    expect(
        bool(raw),
        "Gateway-Manifest: BASE64 (URL-safe) of JSON",
        reply.headers.get("Gateway-Manifest", "none"),
    )
    return p.manifest_of(p.decode(raw, p.JSON))


def unpack(body: bytes, having: str = "") -> Lines:
    """The lines of a file, keeping those that have a text. Raises Failed and ProtocolError."""
    unpacker = zlib.decompressobj(wbits=31)
    lines, rest = Lines(0, 0, []), b""
    try:
        for start in range(0, len(body), 1 << 20):
            piece = unpacker.decompress(body[start : start + (1 << 20)])
            lines.length += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                _line(lines, line, having.encode())
    except zlib.error as error:
        raise Failed("one gzip file", str(error)) from None
    expect(unpacker.eof and not unpacker.unused_data, "one gzip file, whole", "one that is cut or goes on")
    expect(not rest, "a line feed at the end of each line", rest[:80].decode(errors="replace"))
    return lines


def _line(lines: Lines, line: bytes, having: bytes) -> None:
    lines.count += 1
    if having and having not in line:
        return
    try:
        record = orjson.loads(line)
    except ValueError as error:
        raise ProtocolError(f"line {lines.count} is not JSON") from error
    expect(
        isinstance(record, dict) and isinstance(record.get("kind"), str),
        "a record with a kind",
        "another line",
    )
    if having:
        lines.records.append(line)
