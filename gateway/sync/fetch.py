"""The snapshot: downloaded into the spool when the gate asks for one, and handed to it as an open file.

What is there of the file is kept over a cut, a restart and a power cut, and only what is missing is asked
for. Nobody here believes the bytes: the gate compares them with what the central signed, and a file that it
refuses is thrown away.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from gateway import log
from gateway.host import write_durably
from gateway.sync import protocol
from gateway.sync.client import Central, Download, NoAnswer
from gateway.sync.counts import Counts, Trouble
from gateway.sync.link import Away, Link, Refused, in_thread
from gateway.sync.policy import Backoff, Random

PART_FILE = "snapshot.part"
NOTE_FILE = "snapshot.note"
_SYNC = 1 << 20
"""Bytes after which the disk is waited for, and then left alone for as long as that took: the gate's events
go to the same disk."""
_ROOM = 64 << 20
"""Bytes that a download leaves free."""


class _DiskError(Exception):
    """The spool cannot be written."""


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """An OSError here is the disk's; elsewhere in a download it is the network's."""
    try:
        yield
    except OSError as error:
        raise _DiskError(error.strerror or str(error)) from error


class _BadFile(Exception):
    """What was sent cannot be what the manifest says."""


class Fetch:
    """Waits until the gate wants a snapshot, and brings it."""

    def __init__(
        self,
        link: Link,
        central: Central,
        state_dir: Path,
        counts: Counts,
        *,
        failed: Backoff,
        away: Backoff,
        slow: Backoff,
        random: Random,
    ) -> None:
        self._link, self._central, self._counts = link, central, counts
        self._part, self._note = state_dir / PART_FILE, state_dir / NOTE_FILE
        self._failed, self._away, self._slow, self._random = failed, away, slow, random
        self._trouble = Trouble(log.logger("sync"), "snapshot", counts.trouble)
        self._wish: tuple[str | None, str] | None = None
        self._wished = asyncio.Event()
        self._forgotten = False
        self.done = asyncio.Event()
        """Set each time the gate has taken one; for the one who waits to clear."""
        self.finished = 0
        """How often it has."""

    def want(self, snapshot: dict[str, Any] | None, keys: str, finished: int) -> None:
        """What the gate said when ``finished`` was so much: a wish that was fulfilled meanwhile is none."""
        if finished != self.finished:
            return
        self._wish = None if snapshot is None else (snapshot.get("at_least"), keys)
        if self._wish is not None:
            self._wished.set()

    def forget(self) -> None:
        """This gateway was revoked: what is here of a snapshot has every code, and goes."""
        self._wish, self._forgotten = None, True
        self._wished.set()
        with contextlib.suppress(OSError):
            self._discard()

    async def run(self) -> None:
        while True:
            await self._wished.wait()
            if self._forgotten:  # and what an attempt has brought since
                self._forgotten = False
                with contextlib.suppress(OSError):
                    self._discard()
            if self._wish is None:
                self._wished.clear()
                continue
            wait = await self._attempt(*self._wish)
            if wait > 0:
                await asyncio.sleep(wait)

    async def _attempt(self, at_least: str | None, keys: str) -> float:
        """Gives the seconds to wait before the next, if one is still wanted then."""
        try:
            handed = await self._download(at_least, keys)
            if isinstance(handed, float):
                return handed
            if self._forgotten:
                return 0
            return await self._hand_over(*handed)
        except NoAnswer as error:
            self._trouble.say(error.kind, str(error))
        except _BadFile as error:
            self._counts.refused.labels("snapshot").inc()
            self._discard()
            self._trouble.say("bad file", "the snapshot is not what its manifest says", reason=str(error))
        except (_DiskError, OSError) as error:
            self._trouble.say(
                "disk",
                "the snapshot cannot be kept",
                file=str(self._part),
                reason=str(error),
                remedy="make room, or set [central] state_dir to a folder on another disk",
            )
            return self._slow.next()
        return self._failed.next()

    # --- the download ------------------------------------------------------------------------------------

    async def _download(self, at_least: str | None, keys: str) -> tuple[bytes, str] | float:
        """Manifest and signature when the file is whole; or seconds to wait."""
        etag, size = self._kept()
        # Of a file that is whole the last byte is asked for again: the answer has the manifest.
        start = min(self._size(), size - 1) if etag else 0
        async with self._central.snapshot(keys, at_least, max(start, 0), etag) as answer:
            if answer.status == 416:
                self._discard()
                return self._failed.next()
            if answer.status not in (200, 206):
                return self._not_yet(answer)
            try:
                manifest = protocol.manifest_of(protocol.decode(answer.manifest, protocol.JSON))
            except protocol.ProtocolError as error:
                raise NoAnswer(
                    "not_protocol", f"the snapshot's manifest is missing or wrong: {error}"
                ) from error
            if answer.status == 206 and (answer.start, answer.total) != (start, manifest.size):
                raise _BadFile("another part of it was sent than was asked for")
            if answer.status == 206 and answer.etag not in ("", etag):
                raise _BadFile("a part of another file was sent")
            await self._receive(answer, manifest.size)
            return answer.manifest, answer.signature

    def _not_yet(self, answer: Download) -> float:
        if answer.status in (401, 403):  # said by the loop of the changes
            return self._slow.next()
        if answer.status != 503:  # which is the protocol's word for "it is being made"
            self._trouble.say(str(answer.status), "the central fails", status=answer.status, code=answer.code)
        wait = self._failed.next()
        return wait if answer.retry_after is None else answer.retry_after + self._random()

    async def _receive(self, answer: Download, size: int) -> None:
        start = answer.start
        with _disk():
            self._room(size - start)
            file = open(self._part, "r+b" if start else "wb", buffering=0)  # noqa: ASYNC230, SIM115
        with file:
            if answer.status == 200:
                note = orjson.dumps({"etag": answer.etag, "size": size})
                with _disk():
                    await in_thread(lambda: write_durably(self._note, note))
            file.seek(start)
            have = await self._pieces(answer, file, start, size)
        if have < size:
            raise NoAnswer("cut", "the snapshot was cut")

    async def _pieces(self, answer: Download, file: IO[bytes], have: int, size: int) -> int:
        unsynced = 0
        async for piece in answer.pieces:
            have += len(piece)
            if have > size:
                raise _BadFile("it is longer than that")
            with _disk():
                if file.write(piece) != len(piece):
                    raise _DiskError("no space left")
            if answer.status == 206:  # it is worth while to go on at once: each try brings it nearer
                self._failed.reset()
            self._counts.spool.set(have)
            unsynced += len(piece)
            if unsynced >= _SYNC:
                await self._spare(file)
                unsynced = 0
        await self._spare(file)
        return have

    async def _spare(self, file: IO[bytes]) -> None:
        with _disk():
            seconds = await in_thread(lambda: _synced(file.fileno()))
        await asyncio.sleep(seconds)

    def _room(self, more: int) -> None:
        there = os.statvfs(self._part.parent)
        free = there.f_bavail * there.f_frsize
        if more + _ROOM > free:
            raise _DiskError(f"{more} bytes more are needed, and {free} are free")

    # --- the spool -----------------------------------------------------------------------------------------

    def _kept(self) -> tuple[str, int]:
        """ETag and full size of the file that a part is here of; "" where there is none."""
        try:
            note = orjson.loads(self._note.read_bytes())
            etag, size = note["etag"], note["size"]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            return "", 0
        return (etag, size) if isinstance(etag, str) and type(size) is int and size > 0 else ("", 0)

    def _size(self) -> int:
        try:
            return self._part.stat().st_size
        except OSError:
            return 0

    def _discard(self) -> None:
        self._note.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)
        self._counts.spool.set(0)

    # --- the gate ------------------------------------------------------------------------------------------

    async def _hand_over(self, manifest: bytes, signature: str) -> float:
        fd = os.open(self._part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._link.send_fd(
                "generation", fd, manifest=base64.b64encode(manifest).decode(), signature=signature
            )
        except Away as error:
            self._trouble.say("gate", "the gate does not answer; it is asked again", reason=str(error))
            return self._away.next()
        except Refused as error:
            self._counts.refused.labels("snapshot").inc()
            self._trouble.say(f"refused {error.code}", "the gate refuses the snapshot", reason=str(error))
            if error.code == "refused":
                self._discard()
            return self._failed.next()
        finally:
            os.close(fd)
        self._discard()
        self._wish = None
        self._failed.reset()
        self._away.reset()
        self._slow.reset()
        self._trouble.over()
        self.finished += 1
        self.done.set()
        return 0


def _synced(fd: int) -> float:
    """Wait for the disk; gives the seconds that it took, a second at most."""
    began = time.monotonic()
    os.fdatasync(fd)
    return min(time.monotonic() - began, 1.0)
