"""A guest: a computer with Debian, USB sockets, GPIO lines and a plug that can be pulled."""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.hardware.debian import Base
from tests.hardware.kept import HERE

T = TypeVar("T")
SLOW = float(os.environ.get("GATEWAY_HARDWARE_PATIENCE", "1"))
"""Every limit is so many times longer: for a host that is busy with other things."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a program in the guest left."""

    code: int | None
    """Exit status; None if it was still running when the time was over."""
    out: str
    err: str

    def ok(self) -> str:
        """Its standard output, if it did well."""
        assert self.code == 0, f"exit {self.code}\n--- out\n{self.out[-4000:]}\n--- err\n{self.err[-4000:]}"
        return self.out

    def lines(self) -> list[Any]:
        """Its standard output as NDJSON."""
        return [json.loads(line) for line in self.ok().splitlines()]


class Fault(Exception):
    """A function in the guest raised."""


class Guest:
    """One computer. Its disk is a copy on write of ``disk``, in ``folder``, and outlives power cuts."""

    MACHINE: tuple[str, ...] = ("qemu-system-x86_64",)
    """The program, and what kind of computer it is to be."""
    CONSOLE = "ttyS0"

    def __init__(
        self,
        folder: Path,
        base: Base,
        disk: Path,
        *,
        parcel: Path | None = None,
        extra: list[Path] | None = None,
        memory: int = 1024,
        cpus: int = 1,
        cache: str = "writeback",
        rtc: str = "utc",
        options: list[str] | None = None,
    ) -> None:
        """
        Args:
            extra: raw disks beside the first: /dev/vdb and so on.
            cache: QEMU's cache mode of the disks. With ``writeback`` the guest sees a disk with a volatile
                cache that flushes empty; what it wrote lies in the host's page cache, which a cut does not
                lose.
            rtc: what the guest's hardware clock says at boot: ``utc``, or a time like ``1970-01-01``.
            options: more options of QEMU's.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.base = folder, base
        self._disk, self._parcel, self._extra = folder / "disk.qcow2", parcel, extra or []
        self._memory, self._cpus, self._cache, self.rtc, self._options = (
            memory,
            cpus,
            cache,
            rtc,
            options or [],
        )
        if not self._disk.exists():
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", self._disk], check=True
            )
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._listener: threading.Thread | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.news: list[dict[str, Any]] = []
        """What the guest told without being asked, newest last; of all boots."""
        self._arrived = threading.Condition()
        self.boots = 0

    # -- power

    def boot(self, timeout: float = 180, *, until: str = "sysinit") -> None:
        """Switches it on. Comes back when the agent answers, which is early in the boot; with ``until`` =
        "system" when every unit has been started."""
        assert self._process is None, "it is on"
        self.boots += 1
        address = self.folder / "port"
        address.unlink(missing_ok=True)
        command = self._command(address)
        self._log = open(self.folder / "qemu.log", "ab")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        until_then = time.monotonic() + timeout * SLOW
        self._port = socket.socket(socket.AF_UNIX)
        while self._port.connect_ex(str(address)):
            self._alive(until_then)
            time.sleep(0.02)
        seen = len(self.news)
        self._listener = threading.Thread(target=self._listen, args=(self._port,), daemon=True)
        self._listener.start()
        while not any(n.get("stream") == "agent" for n in self.news[seen:]):
            self._alive(until_then)
            with self._arrived:
                self._arrived.wait(0.2)
        if until == "system":
            self.run("systemctl is-system-running --wait", timeout=timeout)

    def _command(self, address: Path) -> list[str]:
        options = {
            "-accel": "tcg,thread=multi",
            "-smp": str(self._cpus),
            "-m": str(self._memory),
            "-rtc": f"base={self.rtc}",
            "-display": "none",
            "-nic": "none",
            "-monitor": "none",
            "-serial": f"file:{self.console}",
            "-kernel": str(self.base.kernel),
            "-initrd": str(self.base.initrd),
            "-append": f"console={self.CONSOLE} panic=-1 quiet systemd.show_status=0 mitigations=off",
        }
        # It does not outlive who started it, however that ends.
        words = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            *self.MACHINE,
            "-no-reboot",
            *(word for pair in options.items() for word in pair),
        ]
        for kind, path in [("qcow2", self._disk), *(("raw", p) for p in self._extra)]:
            words += ["-drive", f"file={path},format={kind},if=virtio,cache={self._cache}"]
        for tag, folder in (("bench", HERE), ("parcel", self._parcel)):
            if folder is not None:
                shared = f"local,path={folder},mount_tag={tag},security_model=none,readonly=on"
                words += ["-virtfs", f"{shared},multidevs=remap"]
        words += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=bench,name=bench"]
        words += ["-chardev", f"socket,path={address},server=on,wait=off,id=bench"]
        return words + self._options

    @property
    def console(self) -> Path:
        """What the guest's kernel and init printed in this boot."""
        return self.folder / f"console-{self.boots}.log"

    @property
    def on(self) -> bool:
        return self._process is not None

    def cut(self) -> None:
        """Pulls the plug, now: nothing in the guest gets to run, its page cache is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
        self._gone()

    def off(self, timeout: float = 90) -> None:
        """Shuts it down in order."""
        assert self._process is not None
        self.run("systemctl poweroff --no-block")
        try:
            self._process.wait(timeout * SLOW)
        finally:
            self.cut()

    def _gone(self) -> None:
        if self._process is not None:
            self._process.wait(30)
            self._process = None
            self._log.close()
        if self._port is not None:
            if self._listener is not None:
                self._listener.join(10)  # what it said before the cut is heard to its end
                self._listener = None
            self._port.close()
            self._port = None

    def _alive(self, until: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None or time.monotonic() > until:
            self.cut()
            logs = (self.folder / "qemu.log", self.console)
            said = [log.read_text(errors="replace")[-3000:] for log in logs if log.exists()]
            raise AssertionError("\n".join(["the guest did not boot", *said]))

    # -- asking

    def run(
        self, command: str, *, user: str | None = None, input: str | None = None, timeout: float = 60
    ) -> Result:
        """Runs a line of shell, as root or as another user; comes back when it has ended."""
        argv = ["sh", "-c", command] if user is None else ["su", "-", user, "-c", command]
        answer = self._ask({"run": argv, "input": input, "timeout": timeout * SLOW}, timeout * SLOW + 30)
        return Result(**answer)

    def call(self, function: str, *, timeout: float = 60, **args: Any) -> Any:
        """Calls a function of a module in ``inside/``, ``keyboard.type`` for instance, with JSON's types."""
        return self._ask({"call": function, "args": args}, timeout * SLOW)

    def _ask(self, request: dict[str, Any], timeout: float) -> Any:
        assert self._port is not None, "the guest is off"
        number = next(self._ids)
        box: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waiting[number] = box
        try:
            self._port.sendall(json.dumps({"id": number, **request}).encode() + b"\n")
            answer = box.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"the guest did not answer within {timeout:.0f} s: {request}") from None
        finally:
            del self._waiting[number]
        if "fault" in answer:
            raise Fault(answer["fault"])
        return answer["result"]

    def _listen(self, port: socket.socket) -> None:
        rest = b""
        while True:
            try:
                data = port.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                box = self._waiting.get(answer.get("id"))
                if box is not None:
                    box.put(answer)
                elif "stream" in answer:
                    with self._arrived:
                        self.news.append(answer)
                        self._arrived.notify_all()

    def told(self, stream: str, since: int = 0) -> list[dict[str, Any]]:
        """The news of one stream, from an index of ``news`` on."""
        return [n for n in self.news[since:] if n["stream"] == stream]

    # -- waiting and files

    def until(self, what: Callable[[], T], why: str, timeout: float = 60, every: float = 0.3) -> T:
        """Asks again until the answer is true, and gives it back."""
        end = time.monotonic() + timeout * SLOW
        while True:
            found = what()
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout * SLOW:.0f} s: {why}; last answer {found!r}")
            time.sleep(every)

    def heard(self, stream: str, count: int, since: int = 0, timeout: float = 60) -> list[dict[str, Any]]:
        """Waits until a stream has told so many things since an index of ``news``."""
        end = time.monotonic() + timeout * SLOW
        with self._arrived:
            while len(found := self.told(stream, since)) < count:
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"only {len(found)} of {count} from {stream}: {found}")
                self._arrived.wait(left)
        return found

    def write(self, path: str, text: str, *, owner: str = "root", mode: str = "644") -> None:
        """Makes a file, whole."""
        self.run(f"install -D -m {mode} -o {owner} -g {owner} /dev/stdin '{path}'", input=text).ok()

    def read(self, path: str) -> str:
        return self.run(f"cat '{path}'").ok()

    def keep(self, target: Path) -> None:
        """Journal, console and the state of the gate's units, for whoever looks at a failure."""
        target.mkdir(parents=True, exist_ok=True)
        for console in self.folder.glob("console-*.log"):
            shutil.copy(console, target)
        if self._port is None:
            return
        for name, command in (
            ("journal.txt", "journalctl --no-pager -o short-monotonic -n 20000"),
            ("dmesg.txt", "dmesg"),
            ("units.txt", "systemctl --no-pager --all; systemctl --no-pager status 'gateway*'"),
            (
                "devices.txt",
                "ls -l /dev/input /dev/hidraw* /dev/ttyACM* /dev/ttyUSB* /dev/gpiochip* /dev/serial/* 2>&1",
            ),
        ):
            try:
                (target / name).write_text(self.run(command, timeout=60).out)
            except (AssertionError, OSError) as away:
                (target / name).write_text(f"not to be had: {away}\n")
