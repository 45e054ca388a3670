"""The demo: central, sync and gate as processes, every story, a revocation that arrives, an end in order."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import ROOT, until

WAIT = 60.0
"""Seconds after which what was waited for will not come."""

pytestmark = pytest.mark.timeout(180)

STORIES = (
    ("FAMILY-8K2M", "✓ granted"),
    ("FAMILY-8K2M", "✓ granted, guest 1"),
    ("VERNISSAGE-4T7Q", "✓ granted"),
    ("SUSPENDED-2PX9", "✗ suspended, detail suspended"),
    ("LOSTCARD-5H3J", "✗ revoked, detail lost"),
    ("NEWCARD-5H3J", "✓ granted"),
    ("REPLACED-7W1B", "✗ revoked, detail replaced"),
    ("PASS+MEMBER-6D4F", "✓ granted"),
    ("GRACE-3N8C", "✓ granted, flags grace"),
    ("OFFPEAK-9R2L", "✗ not_at_this_time, detail "),
    ("SINGLE-1Z5V", "✓ granted, left 0"),
    ("SINGLE-1Z5V", "✗ limit_reached"),
    ("out FAMILY-8K2M", "✓ granted"),
    ("ANYTHING-ELSE", "✗ unknown_credential"),
)
GREETED = "in a second terminal"


class Demo:
    """A demo that is running, in a folder for temporary files of its own."""

    def __init__(self, folder: Path, *, terminal: bool = False, **environment: str) -> None:
        self.folder = folder
        self.text = ""
        inside, self._out = os.openpty()[::-1] if terminal else os.pipe()[::-1]
        self._in, stdin = os.pipe()[::-1] if not terminal else (self._out, inside)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo"],
            stdin=stdin,
            stdout=inside,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), **environment},
            start_new_session=not terminal,
            preexec_fn=_own_terminal if terminal else None,
        )
        os.close(inside)
        if stdin != inside:
            os.close(stdin)

    def type(self, text: str) -> None:
        os.write(self._in, text.encode())

    def reads(self, text: str, after: int = 0) -> int:
        """Wait until it has printed this; where that ends."""
        deadline = time.monotonic() + WAIT
        while (at := self.text.find(text, after)) < 0:
            assert self._read(deadline), f"it ended without saying {text!r}:\n{self.text}\n{self.errors()}"
        return at + len(text)

    def _read(self, deadline: float) -> bool:
        """What it prints; False: that was all."""
        assert select.select([self._out], [], [], max(0, deadline - time.monotonic()))[0], self.text
        try:
            data = os.read(self._out, 65536)
        except OSError:  # the other side of the terminal is closed
            return False
        self.text += data.decode()
        return bool(data)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode() if self.process.poll() is not None else ""

    def ends(self, status: int = 0) -> str:
        """Wait for its end; what it had to complain of. It has cleaned up behind itself."""
        if self._in not in (self._out, -1):
            os.close(self._in)
            self._in = -1
        deadline = time.monotonic() + WAIT
        while self._read(deadline):
            pass
        assert self.process.wait(WAIT) == status, self.text + self.errors()
        errors = self.errors()
        assert "Traceback" not in errors, errors
        assert processes(self.folder) == []
        assert list(self.folder.iterdir()) == []
        return errors

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self._out)
        self._in = self._out = -1

    def close(self) -> None:
        """Whatever became of the test, nothing of it lives on."""
        for pid in [self.process.pid, *processes(self.folder)]:
            if self.process.poll() is None or pid != self.process.pid:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for fd in {self._in, self._out} - {-1}:
            os.close(fd)
        assert self.process.stderr is not None
        self.process.stderr.close()


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def processes(folder: Path, word: str = "") -> list[int]:
    """The processes that have this folder in their command lines, and that word as an argument."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = each.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line and (not word or word.encode() in line.split(b"\0")):
            found.append(int(each.parent.name))
    return found


@pytest.fixture
def demo() -> Iterator[Callable[..., Demo]]:
    """Starts demos."""
    started: list[Demo] = []
    folders: list[Path] = []

    def start(**more: object) -> Demo:
        # Its sockets lie in there, whose paths the kernel wants short; pytest's own folders are not.
        folder = Path(tempfile.mkdtemp(prefix="gateway-test-"))
        folders.append(folder)
        started.append(Demo(folder, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.close()
    for folder in folders:
        shutil.rmtree(folder)


def verdicts(out: str) -> list[tuple[str, str]]:
    """Each line typed with the first line of its answer."""
    return re.findall(r"^scan> (.*)\n  (.*)$", out, re.MULTILINE)


def test_every_story(demo: Callable[..., Demo]) -> None:
    """Piped input: each sample code gets the verdict that its story tells, lanes open and shut, the end of
    input ends it in order, and the central has every event."""
    it = demo()
    it.type("".join(f"{code}\n" for code, _ in STORIES))
    assert it.ends() == ""
    answers = verdicts(it.text)
    assert [code for code, _ in answers] == [code for code, _ in STORIES]
    for (code, answer), (_, expected) in zip(answers, STORIES, strict=True):
        assert answer.startswith(expected), code
    granted = sum(expected.startswith("✓") for _, expected in STORIES)
    assert it.text.count("lane north opened") == granted
    assert it.text.count("stays shut") == len(STORIES) - granted
    events = len(STORIES) + granted
    assert f"{len(STORIES)} scans, {granted} granted; {events} events in the ledger." in it.text
    assert f"The central has {events} of them; all acknowledged." in it.text
    samples = it.text.partition("scan>")[0]
    for code, _ in STORIES:
        assert code.removeprefix("out ") in samples


def test_any_input(demo: Callable[..., Demo]) -> None:
    """Lines that are empty, very long, not UTF-8 or hold control characters are answered, and so is the next
    line each time, the last one without its line feed."""
    odd = (b"", b"   ", b"out ", b"X" * 600, b"X" * 100_000, b"NO\xffUTF8", b"NO\x07BELL", b"TWO\tCODES")
    lines = b"".join(line + b"\nANYTHING%d\n" % n for n, line in enumerate(odd)) + b"FAMILY-8K2M"
    it = demo()
    it.reads(GREETED)  # the pipe holds less than this
    while lines:
        lines = lines[os.write(it._in, lines[:4096]) :]
    assert it.ends() == ""
    answers = verdicts(it.text)
    assert len(answers) == 2 * len(odd) + 1
    for code, answer in answers:
        if code.startswith("ANYTHING"):
            assert answer.startswith("✗ unknown_credential"), answers
    assert sum("malformed" in answer for _, answer in answers) == 3
    assert answers[-1][1].startswith("✓ granted")


def test_without_input(demo: Callable[..., Demo]) -> None:
    """No input at all: it greets and ends."""
    it = demo()
    it.ends()
    assert "0 scans, 0 granted; 0 events in the ledger." in it.text
    assert "The central has 0 of them; all acknowledged." in it.text


def revoke(it: Demo) -> None:
    """Do as the demo says, in another place, with an environment of one's own."""
    (line,) = re.findall(r"^.* central revoke C1 .*$", it.text, re.MULTILINE)
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        line.strip(), shell=True, cwd="/", env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_revocation_arrives(demo: Callable[..., Demo]) -> None:
    """On a terminal: the printed line, run elsewhere, revokes the card; the gate says so by itself and
    refuses it. Ctrl-C ends all."""
    it = demo(terminal=True)
    it.reads("scan> ")
    it.type("FAMILY-8K2M\n")
    at = it.reads("✓ granted")
    it.reads("1 in the hall", at)
    revoke(it)
    at = it.reads("news from the central: C1, FAMILY-8K2M, is now revoked")
    at = it.reads("scan> ", at)
    time.sleep(1.6)  # the news may be there within the 1.5 s in which a second scan is the same scan
    it.type("FAMILY-8K2M\n")
    at = it.reads("✗ revoked", at)
    at = it.reads("stays shut", at)
    it.reads("scan> ", at)  # the terminal would echo Ctrl-C into the line before
    it.type("\x03")
    assert it.ends() == ""
    readme = (ROOT / "README.md").read_text().partition("pasted into the second terminal")[2]
    shown = readme.split("```")[1].strip("\n").splitlines()
    printed = iter(it.text.replace("\r", "").replace("\x1b[K", "\n").splitlines())
    for line in shown:
        assert line in printed, line


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def test_its_terminal_goes_away(demo: Callable[..., Demo]) -> None:
    """The window is closed while it runs: nothing of it stays."""
    it = demo(terminal=True)
    it.reads("scan> ")
    it.hang_up()
    it.process.wait(WAIT)
    assert processes(it.folder) == []
    assert list(it.folder.iterdir()) == []


def test_every_part_may_be_killed(demo: Callable[..., Demo]) -> None:
    """kill -9 of central, gate and sync: each comes back, scans go on, a revocation arrives, and at the end
    the central has every event."""
    it = demo()
    it.reads(GREETED)
    it.type("FAMILY-8K2M\n")
    at = it.reads("visitor went in")
    for name, word in (("central", "serve"), ("gate", "gateway.demo.visitor"), ("sync", "sync")):
        (pid,) = processes(it.folder, word)
        os.kill(pid, signal.SIGKILL)
        at = it.reads(f"the {name} has ended", at)
        until(lambda word=word, pid=pid: set(processes(it.folder, word)) - {pid}, timeout=WAIT)  # type: ignore[misc]
    (where,) = re.findall(r"--url http://127\.0\.0\.1:(\d+)", it.text)
    until(lambda: _listens(int(where)), "the central serves", WAIT)
    it.type("VERNISSAGE-4T7Q\n")
    at = it.reads("✓ granted", at)
    it.reads("visitor went in", at)
    revoke(it)
    at = it.reads("C1, FAMILY-8K2M, is now revoked", at)
    it.type("FAMILY-8K2M\n")
    it.reads("✗ revoked", at)
    assert it.ends() == ""
    assert "3 scans, 2 granted; 5 events in the ledger." in it.text
    assert "The central has 5 of them; all acknowledged." in it.text


MOMENTS = ("", "/central.log", "/gate/sync", "/sync.log")
"""Files in its folder: it begins, the central starts, the gateway is being enrolled, the sync starts."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_moment(demo: Callable[..., Demo], moment: str) -> None:
    """Ctrl-C, also a second one, while it starts, leaves no process and no folder."""
    it = demo()
    until(lambda: list(it.folder.glob(f"gateway-demo-*{moment}")), moment, WAIT)
    os.killpg(it.process.pid, signal.SIGINT)
    os.killpg(it.process.pid, signal.SIGINT)
    it.ends()


def test_killed(demo: Callable[..., Demo]) -> None:
    """kill -9 of the demo leaves no process."""
    it = demo()
    it.reads(GREETED)
    assert len(processes(it.folder)) >= 3
    it.process.kill()
    until(lambda: not processes(it.folder), "all are gone", WAIT)


def test_a_part_that_cannot_start(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """Where the extra packages of the central are missing, the demo ends with 2 and says what to install."""
    (tmp_path / "sqlalchemy.py").write_text("raise ModuleNotFoundError('none', name='sqlalchemy')\n")
    it = demo(PYTHONPATH=str(tmp_path))
    errors = it.ends(2)
    assert "central ended with status 2 before it was ready; the last words of the central:" in errors
    assert "[central]" in errors
