"""The gate as the sync sees it: the real control socket, with calls that keep what they are told.

Only the socket is spoken to, so that a real gate can take its place.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from gateway.control import CallError, Socket, TakeFd
from gateway.metrics import Metrics
from gateway.sync import protocol

COLUMNS = ("seq", "at", "kind", "point", "verdict", "flags", "from_area")


class GateRig:
    """Lives on the rigs' loop; what the tests look at is plain data."""

    def __init__(self, path: Path, public: str) -> None:
        self.path = path
        self.keys = {"k1": base64.b64decode(public)}
        self.enrolled = True
        self.cursor: str | None = "h1-0"
        self.nonces: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.refusals: list[str] = []
        self.want: dict[str, Any] | None = None
        self.want_after_gone = False
        self.sets_aside = 0
        """Records of each answer that are bad."""
        self.revoked = False
        self.condition: dict[str, Any] = {"version": "0"}
        self.files: list[bytes] = []
        self.refuse_files = 0
        self.last = 0
        self.mark = 0
        self.epoch = 7
        self.damaged: set[int] = set()
        self.aside: dict[int, str] = {}
        self.calls: dict[str, int] = {}
        self.metrics = Metrics()
        self.mute = False
        """Calls are taken and not answered."""
        self._socket: Socket | None = None

    async def start(self) -> None:
        calls = {
            "poll": self.poll,
            "answer": self.answer,
            "generation": self.generation,
            "outbox": self.outbox,
            "uploaded": self.uploaded,
            "refuse": self.refuse,
            "metrics": self.text,
        }
        hello = {"gateway": "north", "version": "0", "epoch": self.epoch}
        self._socket = Socket("sync", {n: self._counted(n, c) for n, c in calls.items()}, hello, print)
        await self._socket.listen(self.path)

    def stop(self) -> None:
        assert self._socket is not None
        self._socket.close()

    def _counted(self, name: str, call: Any) -> Any:
        def counted(arguments: Mapping[str, Any]) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return self._silent() if self.mute else call(arguments)

        return counted

    def _silent(self) -> Generator[Any, None, None]:
        from gateway.control import Later

        while self.mute:
            yield Later(0.05)
        raise CallError("busy", "it was mute")

    # --- calls -----------------------------------------------------------------------------------------

    def poll(self, _: Mapping[str, Any]) -> dict[str, Any]:
        if not self.enrolled:
            return {"enrolled": False}
        return {
            "enrolled": True,
            "gateway": "north",
            "venue": "main",
            "url": "",
            "nonce": self._draw(),
            "cursor": self.cursor,
            "keys": list(self.keys),
            "wait": True,
            "snapshot": None if self.revoked else self.want,
            "revoked": self.revoked,
            "condition": {**self.condition, "last_seq": self.last},
        }

    def _draw(self) -> str:
        self.nonces.append(secrets.token_urlsafe(18))
        del self.nonces[:-8]
        return self.nonces[-1]

    def _verified(self, purpose: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        raw = base64.b64decode(arguments["body"])
        try:
            protocol.verify(self.keys, purpose, raw, arguments["signature"])
            body = protocol.decode(raw, arguments["type"])
        except protocol.ProtocolError as error:
            self.refusals.append(str(error))
            raise CallError("refused", str(error)) from error
        if body["nonce"] not in self.nonces:
            self.refusals.append("nonce")
            raise CallError("refused", "nonce: no such question")
        self.nonces.remove(body["nonce"])
        return body

    def answer(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        body = self._verified(protocol.CHANGES, arguments)
        self.answers.append({"type": arguments["type"], **body})
        result = {
            "changed": 0,
            "set_aside": self.sets_aside,
            "commands": 0,
            "more": False,
            "gone": False,
            "revoked": False,
        }
        self.revoked = bool(body.get("revoked"))
        if self.revoked:
            return result | {"revoked": True}
        if body.get("gone"):
            self.cursor = None
            if self.want_after_gone:
                self.want = {"at_least": None}
            return result | {"gone": True}
        self.cursor = body["next"]
        self.records += body["records"]
        return result | {"changed": len(body["records"]), "more": body["more"]}

    def generation(self, arguments: Mapping[str, Any]) -> Generator[Any, None, None]:
        manifest = base64.b64decode(arguments["manifest"])
        protocol.verify(self.keys, protocol.SNAPSHOT_FILE, manifest, arguments["signature"])
        handed = TakeFd()
        yield handed
        assert handed.fd is not None
        content = os.pread(handed.fd, 1 << 28, 0)
        handed.close()
        if self.refuse_files:
            self.refuse_files -= 1
            raise CallError("refused", "sha256: not what was signed")
        self.files.append(content)
        self.want = None
        if self.cursor is None:
            self.cursor = protocol.decode(manifest, protocol.JSON)["cursor"]
        yield {"generation": len(self.files), "state": "in_use"}

    def outbox(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if not self.enrolled:
            return {"enrolled": False}
        since = max(arguments.get("since") or 0, self.mark)
        seqs = [seq for seq in range(since + 1, self.last + 1) if seq not in self.aside]
        return {
            "enrolled": True,
            "nonce": self._draw() if seqs else None,
            "keys": list(self.keys),
            "gateway": "north",
            "zone": "Europe/Berlin",
            "columns": COLUMNS,
            "rows": [self._row(seq) for seq in seqs[: arguments["limit"]]],
            "last_seq": self.last,
        }

    def _row(self, seq: int) -> list[Any]:
        if seq in self.damaged:
            return [self.epoch, None, seq, *[None] * (len(COLUMNS) - 1)]
        at = 1795255200_000_000 + seq
        return [self.epoch, f"{seq:016x}", seq, at, "scan", "north-in", "granted", "offline,late", "outside"]

    def uploaded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        body = self._verified(protocol.EVENTS, arguments)
        for _, first, last in body["acknowledged"]:
            if first <= self._next() <= last:
                self.mark = last
        return {"acknowledged": self.mark, "refused": 0, "conflict": False}

    def _next(self) -> int:
        while self.mark + 1 in self.aside:
            self.mark += 1
        return self.mark + 1

    def refuse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.aside[arguments["seq"]] = arguments["reason"]
        self._next()
        return {"refused": arguments["seq"]}

    def text(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": self.metrics.text().decode()}
