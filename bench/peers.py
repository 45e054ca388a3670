"""Gateways that are only there: as many as asked in one process, for the benchmark ``news``.

Each is enrolled by a code of its own, fetches the snapshot file and builds a generation of it on tmpfs, and
from then on speaks the protocol as docs/protocol.md has it: a nonce for each question, long polls, every
signature verified, whom and what an answer is for compared, and the records and the cursor written into its
own generation in one transaction by the gate's own code (``Snapshot.apply``) before it asks again. It has no
readers, no lanes and no courier of its own.

``python -m bench.peers URL FOLDER``, with lines of JSON on standard input: first the gateways
(``[{"gateway", "code"}, ...]``); it answers ``"ready"`` when each of them waits for news. Then, at the end of
the input, what each has: ``[{"applied": records, "at": {id: time}}, ...]``, in seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gateway.cache import received
from gateway.cache.snapshot import Snapshot
from gateway.sync import protocol

ACCEPT = f"{protocol.MSGPACK}, {protocol.JSON};q=0.9"
BUILDING = asyncio.Semaphore(4)


class Peer:
    """One gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str, folder: Path, gateway: str) -> None:
        self.session, self.url, self.gateway = session, url, gateway
        self.folder = folder / gateway
        self.folder.mkdir(mode=0o700)
        self.machine = hashlib.sha256(gateway.encode()).hexdigest()
        self.token = self.venue = self.history = ""
        self.keys: dict[str, bytes] = {}
        self.snapshot: Snapshot | None = None
        self.waits = asyncio.Event()
        self.at: dict[str, float] = {}
        self.applied = 0
        self._condition = base64.urlsafe_b64encode(orjson.dumps({"version": "bench"})).decode()

    async def run(self, code: str) -> None:
        async with BUILDING:
            await self._enrol(code)
            await self._fetch()
        wait = 0
        while True:
            wait = await self._ask(wait)

    async def _enrol(self, code: str) -> None:
        asked = {"code": code, "machine": self.machine, "hostname": "bench", "version": "bench"}
        async with self.session.post(f"{self.url}/v1/enroll", json=asked) as answer:
            answer.raise_for_status()
            said = await answer.json()
        self.token, self.venue, self.history = said["token"], said["venue"], said["history"]
        self.keys = {key["id"]: protocol.public_bytes(key["public"]) for key in said["keys"]}

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Gateway-Machine": self.machine,
            "Gateway-Condition": self._condition,
            "Accept": ACCEPT,
        }

    async def _fetch(self) -> None:
        path = self.folder / "snapshot.gz"
        query = {"keys": ",".join(self.keys)}
        async with self.session.get(
            f"{self.url}/v1/snapshot", params=query, headers=self._headers()
        ) as answer:
            answer.raise_for_status()
            manifest = base64.urlsafe_b64decode(answer.headers["Gateway-Manifest"])
            protocol.verify(self.keys, protocol.SNAPSHOT_FILE, manifest, answer.headers["Gateway-Signature"])
            path.write_bytes(await answer.read())
        said = orjson.loads(manifest)
        if (said["venue"], said["history"]) != (self.venue, self.history):
            raise RuntimeError("the snapshot is of another log")
        with path.open("rb") as file:
            told = {**said, "published": protocol.instant(said, "published")}
            result = received.take(self.folder, file.fileno(), told, source="bench", pace=0)
        if not result.ok:
            raise RuntimeError(result.error)
        path.unlink()
        self.snapshot = Snapshot.open(self.folder)

    async def _ask(self, wait: int) -> int:
        """One question and its answer; gives the seconds to wait with the next."""
        snapshot = self.snapshot
        assert snapshot is not None
        assert snapshot.cursor is not None
        nonce, cursor = secrets.token_urlsafe(18), snapshot.cursor
        query = {"nonce": nonce, "keys": ",".join(self.keys), "wait": str(wait), "cursor": cursor}
        if wait:
            self.waits.set()
        async with self.session.get(
            f"{self.url}/v1/changes", params=query, headers=self._headers()
        ) as answer:
            body = await answer.read()
            answer.raise_for_status()
        protocol.verify(self.keys, protocol.CHANGES, body, answer.headers["Gateway-Signature"])
        changes = protocol.changes_of(protocol.decode(body, answer.content_type))
        said = changes.said
        if (said.gateway, said.venue, said.history, said.nonce, changes.cursor) != (
            self.gateway, self.venue, self.history, nonce, cursor,
        ):  # fmt: skip
            raise RuntimeError("the answer is for somebody else")
        self.token = answer.headers.get("Gateway-Token", self.token)
        if changes.records or changes.next != cursor:
            applied = snapshot.apply(changes.records, changes.next, said.time, position=changes.position)
            if applied.bad:
                raise RuntimeError(f"bad records: {applied.bad}")
            now = time.monotonic()
            self.applied += len(changes.records)
            self.at.update((record["id"], now) for record in changes.records)
        return 0 if changes.more else protocol.WAIT


async def main(url: str, folder: Path) -> None:
    gateways = json.loads(sys.stdin.readline())
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        peers = [Peer(session, url, folder, each["gateway"]) for each in gateways]
        tasks = [loop.create_task(peer.run(each["code"])) for peer, each in zip(peers, gateways, strict=True)]
        waiting = loop.create_task(asyncio.wait([loop.create_task(peer.waits.wait()) for peer in peers]))
        await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            print(json.dumps("ready"), flush=True)
            rest: asyncio.Future[Any] = loop.run_in_executor(None, sys.stdin.read)
            await asyncio.wait((rest, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # none of them ends by itself
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        print(json.dumps([{"applied": peer.applied, "at": peer.at} for peer in peers]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
