"""A snapshot file of the courier: right, damaged in every way, hostile, or killed in the middle."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cache import generations, received
from gateway.cache.build import build
from gateway.cache.received import MAX_RECORD, DamagedError, Received, lines, receive, take
from gateway.cache.snapshot import Snapshot

OLD = b'{"kind":"credential","id":"OLD","code":"OLD-CODE"}\n'


def feed(count: int) -> bytes:
    """So many credentials as lines."""
    cards = ({"kind": "credential", "id": f"C{n}", "code": f"CODE-{n}"} for n in range(count))
    return b"".join(json.dumps(card).encode() + b"\n" for card in cards)


def signed(packed: bytes, plain: bytes, **other: Any) -> dict[str, Any]:
    """What the central says about a file."""
    return {
        "venue": "main",
        "history": "h7",
        "cursor": "C",
        "position": 4700,
        "published": 1_700_000_000_000_000,
        "count": len(plain.splitlines()),
        "bytes": len(plain),
        "size": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
    } | other


class File:
    """A file of these bytes, open for reading."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.path = folder / "handed"
        self.path.write_bytes(content)
        self.fd = os.open(self.path, os.O_RDONLY)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def old(data_dir: Path) -> None:
    build(data_dir, [OLD], source="old", pace=0)


def files(data_dir: Path) -> set[str]:
    return {name for name in os.listdir(data_dir) if not name.endswith("-lock")}


def unchanged(data_dir: Path) -> None:
    """The old generation is there and whole, and nothing else."""
    assert files(data_dir) == {"code.key", ".build.lock", "snapshot-00000001.mdb"}
    snapshot = Snapshot.open(data_dir)
    assert snapshot is not None
    assert snapshot.find(b"OLD-CODE") is not None
    snapshot.close()


def child(data_dir: Path, fd: int, manifest: dict[str, Any], **more: Any) -> Received:
    return asyncio.run(receive(data_dir, fd, manifest, source="the central", pace=0, **more))


def test_the_right_file(tmp_path: Path) -> None:
    """It becomes the next generation, with what the central signed about it; bad records are set aside."""
    plain = feed(3000) + b'{"kind":"holder","id":7}\n{"kind":"locker"}\n'
    packed = gzip.compress(plain)
    data = tmp_path / "data"
    old(data)
    with File(tmp_path, packed) as fd:
        result = child(data, fd, signed(packed, plain))
    assert result == Received(
        ok=True, generation=2, credentials=3000, bad=1, faults=("3001: id: must be a string, not a number",)
    )
    snapshot = Snapshot.open(data)
    assert snapshot is not None
    assert (snapshot.generation, snapshot.cursor, snapshot.history) == (2, "C", "h7")
    assert (snapshot.position, snapshot.base, snapshot.published) == (4700, 4700, 1_700_000_000_000_000)
    assert snapshot.source == "the central"
    assert snapshot.find(b"CODE-2999") is not None
    assert snapshot.find(b"OLD-CODE") is None
    snapshot.close()


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """Over all borders of blocks, with empty lines, and without a line feed at the end."""
    rnd = random.Random(1)
    for end in (b"\n", b""):
        wanted = [rnd.randbytes(rnd.choice((0, 1, 50, 60_000))).replace(b"\n", b"\r") for _ in range(400)]
        wanted.append(b"last")
        plain = b"\n".join(wanted) + end
        packed = gzip.compress(plain, 1)
        manifest = signed(packed, plain, count=len(wanted))
        with File(tmp_path, packed) as fd:
            assert list(lines(fd, manifest)) == wanted


def test_an_empty_snapshot(tmp_path: Path) -> None:
    """A venue without records is a snapshot too."""
    packed = gzip.compress(b"")
    with File(tmp_path, packed) as fd:
        assert take(tmp_path / "data", fd, signed(packed, b""), source="x").ok


def test_a_file_cut_at_every_byte(tmp_path: Path) -> None:
    """No beginning of a file passes, neither through the stream nor through the child."""
    plain = feed(20)
    packed = gzip.compress(plain)
    manifest = signed(packed, plain)
    for cut in range(len(packed)):
        with File(tmp_path, packed[:cut]) as fd, pytest.raises(DamagedError):
            list(lines(fd, manifest))
        # Also where the central itself signed a cut file, it is not taken.
        with File(tmp_path, packed[:cut]) as fd, pytest.raises(DamagedError):
            list(lines(fd, signed(packed[:cut], plain)))
    data = tmp_path / "data"
    old(data)
    for cut in (0, 5, len(packed) // 2, len(packed) - 1):
        with File(tmp_path, packed[:cut]) as fd:
            result = child(data, fd, manifest)
        assert (result.ok, result.code) == (False, "damaged")
        unchanged(data)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"count": 21}, "21 lines were signed"),
        ({"count": 19}, "more than was signed"),
        ({"bytes": 1}, "more than was signed"),
        ({"bytes": 1 << 40}, "1099511627776 bytes"),
        ({"size": 10}, "longer than the 10 bytes"),
        ({"size": 1 << 40}, "of 1099511627776 bytes"),
    ],
)
def test_a_file_that_is_not_what_was_signed(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    """Each thing that was signed about a file is held against it before a generation is there."""
    plain = feed(20)
    packed = gzip.compress(plain)
    data = tmp_path / "data"
    old(data)
    with File(tmp_path, packed) as fd:
        result = take(data, fd, signed(packed, plain) | change, source="x", pace=0)
    assert result.code == "damaged"
    assert word in result.error
    unchanged(data)


def test_what_follows_the_stream(tmp_path: Path) -> None:
    """Bytes or a second stream behind the first are no part of a snapshot, even if they were signed."""
    plain = feed(20)
    for more in (b"\0", b"x", gzip.compress(b""), gzip.compress(plain), bytes(1 << 20)):
        packed = gzip.compress(plain) + more
        with File(tmp_path, packed) as fd, pytest.raises(DamagedError, match="follows the gzip stream"):
            list(lines(fd, signed(packed, plain)))


def test_a_long_line(tmp_path: Path) -> None:
    """A line may have 65,536 bytes, not one more."""
    for more, passes in ((0, True), (1, False)):
        plain = b"x" * (MAX_RECORD + more) + b"\n" + feed(1)
        packed = gzip.compress(plain)
        with File(tmp_path, packed) as fd:
            if passes:
                assert len(list(lines(fd, signed(packed, plain)))) == 2
            else:
                with pytest.raises(DamagedError, match="a line of more than 65536 bytes"):
                    list(lines(fd, signed(packed, plain)))


@pytest.mark.parametrize("act", ["change", "shrink", "grow"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, act: str) -> None:
    """Whatever is done to it behind what was read already, or before: all of it is what was signed, or
    nothing is built."""
    plain = os.urandom(1 << 20).hex().encode()
    plain = b"\n".join(plain[at : at + 1000] for at in range(0, len(plain), 1000))
    packed = gzip.compress(plain, 1)
    manifest = signed(packed, plain)
    file = File(tmp_path, packed)
    with file as fd:
        reading = iter(lines(fd, manifest))
        next(reading)
        with file.path.open("r+b") as other:
            if act == "change":
                other.seek(len(packed) - 100)
                other.write(b"x")
            elif act == "shrink":
                other.truncate(1000)
            else:
                other.seek(0, os.SEEK_END)
                other.write(bytes(5000))
        with pytest.raises(DamagedError):
            list(reading)


def test_a_file_that_grows_for_ever(tmp_path: Path) -> None:
    """Reading ends where what was signed ends, whoever appends meanwhile."""
    packed = gzip.compress(feed(20))
    file = File(tmp_path, packed + bytes(1 << 30 >> 6))
    stop = threading.Event()

    def grow() -> None:
        with file.path.open("ab") as other:
            while not stop.wait(0.0001):
                other.write(bytes(1 << 16))

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with file as fd:
            result = child(tmp_path / "data", fd, signed(packed, feed(20)))
    finally:
        stop.set()
        thread.join()
    assert result.code == "damaged"


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe, a socket, a folder, a device, a descriptor for writing and a closed one are refused at once."""
    old(tmp_path / "data")
    read, write = os.pipe()
    one, two = socket.socketpair()
    opened = [read, write, os.open(tmp_path, os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
    opened.append(os.open(tmp_path / "w", os.O_WRONLY | os.O_CREAT))
    closed = os.open(tmp_path, os.O_RDONLY)
    os.close(closed)
    manifest = signed(b"", b"")
    try:
        for fd in (*opened, one.fileno(), closed):
            result = take(tmp_path / "data", fd, manifest, source="x")
            assert (result.ok, result.code) == (False, "damaged")
        assert not child(tmp_path / "data", read, manifest).ok
        assert not child(tmp_path / "data", closed, manifest).ok
    finally:
        for fd in opened:
            os.close(fd)
        one.close()
        two.close()
    unchanged(tmp_path / "data")


def bombs() -> Iterator[tuple[str, bytes]]:
    """128 MiB as 128 KiB: zeros, one line that never ends, empty lines, short lines."""
    for name, block in (
        ("zeros", bytes(1 << 20)),
        ("line", b'{"kind":"' + b"a" * ((1 << 20) - 9)),
        ("empty lines", b"\n" * (1 << 20)),
        ("short lines", b"{}\n" * (1 << 18)),
    ):
        packer = zlib.compressobj(9, wbits=31)
        yield name, b"".join(packer.compress(block) for _ in range(128)) + packer.flush()


def test_a_gzip_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A child that may have 96 MiB ends with a reason; what it is given unpacks to more."""
    data = tmp_path / "data"
    old(data)
    command = [sys.executable, "-m", "gateway.cache.received", str(data)]
    for name, packed in bombs():
        for size in (1000, 1 << 30):
            manifest = signed(packed, b"") | {"bytes": size, "count": 1000 if size == 1000 else 1 << 17}
            with File(tmp_path, packed) as fd:
                process = subprocess.Popen(
                    [*command, str(fd)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(fd,)
                )
                assert process.stdin is not None
                assert process.stdout is not None
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (96 << 20, 96 << 20))
                process.stdin.write(orjson.dumps({"manifest": manifest, "source": "x", "pace": 0}) + b"\n")
                process.stdin.close()
                told = [orjson.loads(line) for line in process.stdout]
                process.stdout.close()
                assert process.wait() == 0
            assert told[-1]["code"] == "damaged", name
    unchanged(data)


def test_random_corruptions(tmp_path: Path) -> None:
    """300 files with flipped, cut, doubled or inserted bytes: the present generation serves."""
    data = tmp_path / "data"
    old(data)
    plain = feed(50)
    packed = gzip.compress(plain)
    manifest = signed(packed, plain)
    rnd = random.Random(3)
    for _ in range(300):
        broken = bytearray(packed)
        at = rnd.randrange(len(broken))
        match rnd.randrange(4):
            case 0:
                broken[at] ^= 1 << rnd.randrange(8)
            case 1:
                del broken[at : at + rnd.randrange(1, 50)]
            case 2:
                broken[at:at] = broken[at : at + 20] or b"x"
            case _:
                broken[at:at] = rnd.randbytes(5)
        # The second time the central itself has signed the nonsense: zlib, length and count are left.
        for said in (manifest, manifest | signed(bytes(broken), plain)):
            with File(tmp_path, bytes(broken)) as fd:
                result = take(data, fd, said, source="x", pace=0)
            if result.ok:  # a flipped bit in gzip's head says nothing about the content
                assert said is not manifest
                assert result.credentials == 50
                generations.path_of(data, result.generation).unlink()
            else:
                assert result.code == "damaged"
    unchanged(data)


def test_two_builds_at_once(tmp_path: Path) -> None:
    """The second one is told that another builds; the first is not disturbed."""
    plain = feed(20)
    packed = gzip.compress(plain)
    data = tmp_path / "data"
    old(data)
    with generations.building(data), File(tmp_path, packed) as fd:
        assert child(data, fd, signed(packed, plain)).code == "busy"
    unchanged(data)


def test_a_full_disk(tmp_path: Path) -> None:
    """It is told as such, and the generation in use stays."""
    plain = feed(5000)
    packed = gzip.compress(plain)
    data = tmp_path / "data"
    old(data)
    with File(tmp_path, packed) as fd:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        try:
            result = take(data, fd, signed(packed, plain), source="x", pace=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
    assert not result.ok
    assert "Look for a full or failing disk" in result.error
    unchanged(data)


def children() -> set[str]:
    """Processes that this one has started and not reaped, from whichever thread."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_a_child_that_is_killed_or_given_up(tmp_path: Path) -> None:
    """Killed at any moment, cancelled, or standing still: it is told or gone, reaped, and the data_dir is as
    it was when the next build begins."""
    plain = feed(60_000)
    packed = gzip.compress(plain)
    manifest = signed(packed, plain)
    data = tmp_path / "data"
    old(data)
    before = children()

    async def begun(task: asyncio.Task[Received], sign: Callable[[], object]) -> str:
        while not (children() - before and sign()):
            assert not task.done()
            await asyncio.sleep(0.002)
        (pid,) = children() - before
        return pid

    def signs() -> list[Callable[[], object]]:
        return [
            lambda: True,
            lambda: any(name.endswith(".part") for name in os.listdir(data)),
        ]

    async def main(fd: int) -> None:
        for sign in signs():
            task = asyncio.create_task(receive(data, fd, manifest, source="x"))
            os.kill(int(await begun(task, sign)), signal.SIGKILL)
            result = await task
            assert (result.ok, result.code) == (False, "failed")
            assert children() == before
            generations.clean_leftovers(data)
        for sign in signs():
            task = asyncio.create_task(receive(data, fd, manifest, source="x"))
            await begun(task, sign)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert children() == before
            generations.clean_leftovers(data)
        task = asyncio.create_task(receive(data, fd, manifest, source="x", patience=1.5))
        os.kill(int(await begun(task, signs()[0])), signal.SIGSTOP)
        assert (await task).code == "stalled"
        assert children() == before

    with File(tmp_path, packed) as fd:
        asyncio.run(main(fd))
        generations.clean_leftovers(data)
        unchanged(data)
        assert child(data, fd, manifest).generation == 2


def test_a_child_whose_gate_is_gone(tmp_path: Path) -> None:
    """It ends by itself, soon, and leaves nothing: the next gate can build."""
    plain = feed(60_000)
    packed = gzip.compress(plain)
    data = tmp_path / "data"
    old(data)
    with File(tmp_path, packed) as fd:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cache.received", str(data), str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(fd,),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        job = {"manifest": signed(packed, plain), "source": "x", "pace": 1}
        process.stdin.write(orjson.dumps(job) + b"\n")
        process.stdin.close()
        process.wait()
    names = files(data)
    assert names - {"snapshot-00000002.mdb"} == {"code.key", ".build.lock", "snapshot-00000001.mdb"}


def test_the_limits_of_the_module(tmp_path: Path) -> None:
    """A record may be as long as the protocol says."""
    from gateway.sync import protocol

    assert received.MAX_RECORD == protocol.MAX_RECORD
