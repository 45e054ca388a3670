"""Central, sync and gate as processes of their own, in a folder, joined with each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import orjson

from gateway.demo.scanning import GateLine, Pty
from gateway.demo.words import doing, prompt, tell
from gateway.supervise import Part, PartFailed, Supervisor

_STARTS = 60.0
"""Seconds after which the demo gives up on a part that does not get on."""
_LAST_LINES = 8
"""Lines of a part's log that are shown where it does not start."""

_CONFIG = """
[gateway]
id = "demo"
data_dir = {data_dir}

[web]
listen = "127.0.0.1:0"

[[lane]]
name = "north"
relay = {{ driver = "memory" }}
pulse_ms = 300
passage = {{ driver = "memory", timeout_s = 5 }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
anti_passback = "hard"
guest_window_s = 30

[[point]]
name = "north-out"
lane = "north"
from = "hall"
to = "outside"

[[reader]]
name = "scanner-in"
point = "north-in"
driver = "serial"
device = {scanner_in}
repeat_delay_s = 1.0

[[reader]]
name = "scanner-out"
point = "north-out"
driver = "serial"
device = {scanner_out}
repeat_delay_s = 1.0
"""

Json = dict[str, Any]


class CannotStart(Exception):
    """The demo cannot go on; the message says which part, and its last words."""


def _program() -> list[str]:
    """How this very program is called from anywhere: the console script, or the module."""
    script = Path(sys.executable).with_name("gateway")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "gateway"]


class System:
    """Central, sync and gate, started and joined, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scanners = {"in": Pty(), "out": Pty()}
        self.gate = GateLine(folder / "gate" / "admin.sock")
        self.url = ""
        self._supervisor = Supervisor(on_end=self._ended)

    async def start(self, records: list[Json], sample: str) -> None:
        """Start all, and wait until the gate has the cards: until it grants that code of theirs.

        Raises:
            CannotStart: a part does not start, or the cards do not arrive.
        """
        doing("Starting central and gate")
        config = self._configure()
        central = self._part("central", "gateway", "central", "serve", "--data", self.folder / "central")
        central.watchdog = 180
        serve = central.command
        central.command = [*serve, "--listen", "127.0.0.1:0"]
        await self._run(central, self._part("gate", "gateway.demo.visitor", config))
        self.url = (self.folder / "central" / "address").read_text().strip()
        address = self.url.removeprefix("http://")
        central.command = [
            *serve,
            "--listen",
            address,
        ]  # the gate knows it there, also when it is started anew
        doing("Loading the sample cards into the central")
        await self.admin("POST", "venues/main/records", b"\n".join(map(orjson.dumps, records)))
        code = await self.admin("POST", "venues/main/enrolment-codes", orjson.dumps({"gateway": "demo"}))
        doing("Joining it")
        with config.open("a") as more:
            more.write(f"\n[central]\nurl = {_quoted(self.url)}\n")
        await self._enroll(config, code["code"])
        doing("Starting the sync")
        await self._run(self._part("sync", "gateway", "sync", "--config", config))
        doing("Fetching the cards")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STARTS):
                while await self._verdict(sample) != "granted":  # noqa: ASYNC110 - in other processes
                    await asyncio.sleep(0.02)
                return
        raise CannotStart(f"the cards do not arrive at the gate{self.last_words('sync')}")

    async def _verdict(self, code: str) -> str:
        verdict: str = (await self.gate.call("check", code=code, point="north-in"))["verdict"]
        return verdict

    def _configure(self) -> Path:
        """A gate that has not joined a central yet."""
        (self.folder / "gate").mkdir()
        config = self.folder / "gateway.toml"
        config.write_text(
            _CONFIG.format(
                data_dir=_quoted(self.folder / "gate"),
                scanner_in=_quoted(self.scanners["in"].device),
                scanner_out=_quoted(self.scanners["out"].device),
            )
        )
        return config

    def _part(self, name: str, module: str, *arguments: str | Path) -> Part:
        command = [sys.executable, "-m", module, *arguments]
        return Part(name, command, log=self.folder / f"{name}.log", patient=False)

    async def _run(self, *parts: Part) -> None:
        try:
            async with asyncio.timeout(_STARTS):
                await asyncio.gather(*(self._supervisor.start(part) for part in parts))
        except PartFailed as error:
            raise CannotStart(f"{error}{self.last_words(error.part.name)}") from error
        except TimeoutError:
            names = " and ".join(part.name for part in parts)
            words = "".join(self.last_words(part.name) for part in parts)
            raise CannotStart(f"{names}: not ready within {_STARTS:.0f} s{words}") from None

    def last_words(self, name: str) -> str:
        """The end of a part's log, to be put behind a message."""
        with contextlib.suppress(OSError):
            lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-_LAST_LINES:]
            if lines:
                return f"; the last words of the {name}:\n  " + "\n  ".join(lines)
        return ""

    def _ended(self, part: Part, _: int) -> None:
        tell(f"  · the {part.name} has ended; it is started again")
        for scanner in self.scanners.values():
            scanner.free()
        prompt()

    async def _enroll(self, config: Path, code: str) -> None:
        """Join the central, as a technician does; the code comes on standard input and is nobody's to see."""
        enroll = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "enroll", self.url, "-", "--config", config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
        )
        try:
            out, _ = await enroll.communicate(code.encode() + b"\n")
        finally:
            if enroll.returncode is None:
                enroll.kill()
                await enroll.wait()
        if enroll.returncode:
            raise CannotStart(f"the gateway cannot join the central: {out.decode(errors='replace').strip()}")

    async def admin(self, method: str, path: str, body: bytes | None = None) -> Any:
        """A call of the central's admin API.

        Raises:
            CannotStart: it does not answer, or refuses.
        """
        token = (self.folder / "central" / "admin.token").read_text().strip()
        request = urllib.request.Request(f"{self.url}/admin/v1/{path}", body, method=method)
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header(
            "Content-Type", "application/x-ndjson" if "records" in path else "application/json"
        )
        try:
            return orjson.loads(await asyncio.to_thread(_fetch, request))
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            raise CannotStart(f"the central refuses {method} {path}: {answer[:500]}") from None
        except (OSError, orjson.JSONDecodeError) as error:
            raise CannotStart(f"the central does not answer {method} {path}: {error}") from None

    def revocation(self) -> str:
        """The command that revokes the first card, as it can be typed anywhere on this machine."""
        token = self.folder / "central" / "admin.token"
        words = (*_program(), "central", "revoke", "C1", "--url", self.url, "--admin-token", str(token))
        return shlex.join(words)

    async def close(self) -> None:
        """Stop everything, in order."""
        self.gate.close()
        await self._supervisor.stop()
        for scanner in self.scanners.values():
            scanner.close()


def _fetch(request: urllib.request.Request) -> bytes:
    # The demo's central is on this machine, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
        content: bytes = answer.read()
        return content


def _quoted(value: object) -> str:
    return orjson.dumps(str(value)).decode()
