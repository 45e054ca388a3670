"""A network of two computers with a bad line between them: loss, delay, packets that overtake others, cuts.

Each side is a network namespace with a TUN device (Linux: Documentation/networking/tuntap.rst), and one
process holds the other ends of both and carries every IP packet by hand, or does not. So the kernel's own TCP
is at work on both sides, and what goes wrong between them goes wrong in this file: no netem is needed, which
not every kernel has. ``Line`` is the test's handle; ``python -m tests.e2e.lossy SEED`` is the process.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""The gateway's address and the central's."""

# <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>, <linux/sched.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFDSTADDR = 0x8914, 0x8916, 0x8918
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

_TCP = 6
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


@dataclass
class Policy:
    """What the line does to each packet, in both directions."""

    loss: float = 0.0
    """The part of all packets that is lost, 0 to 1."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Each packet takes up to so much more or less: later ones overtake earlier ones."""
    cut: bool = False
    """Nothing goes through."""
    cut_after: int | None = None
    """The line is cut when it has carried so many more bytes to the gateway."""


# --- the test's side ----------------------------------------------------------------------------------


class Line:
    """The line, running. ``near`` and ``far`` go before a command that is to run on that side."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.lossy", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        made = self._read()
        if "error" in made:
            self.close()
            raise AssertionError(made["error"])
        self.near, self.far = (self._enter(fd, made["user"]) for fd in made["sides"])

    def _enter(self, fd: int, user: bool) -> list[str]:
        of = f"/proc/{self._process.pid}"
        whose = [f"--user={of}/ns/user", "--preserve-credentials"] if user else []
        return ["nsenter", *whose, f"--net={of}/fd/{fd}"]

    def set(self, **policy: Any) -> None:
        """Change what is named; the rest of the policy stays."""
        self._ask(set=policy)

    def forget(self) -> None:
        """Connections that there are now are unknown from here on: whoever uses one is told so (RST), as by
        a router that was restarted."""
        self._ask(forget=True)

    def counts(self) -> dict[str, int]:
        """``near`` and ``far``: bytes carried to that side; ``lost``: packets that were not; ``overtaken``;
        ``cut``: whether the line is cut."""
        return self._ask()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the line's process is gone; see its stderr"
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


# --- namespaces and devices -----------------------------------------------------------------------------


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _become_master() -> bool:
    """See to it that network namespaces may be made; whether a user namespace was needed for it."""
    if os.geteuid() == 0:
        return False
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return True


def _side(address: str, peer: str) -> tuple[int, int]:
    """A new network namespace, with this process in it: its fd and that of its TUN device."""
    _unshare(_CLONE_NEWNET)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH14x", b"line", _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for request, ip in ((_SIOCSIFADDR, address), (_SIOCSIFDSTADDR, peer)):
            told = struct.pack("16sHH4s8x", b"line", socket.AF_INET, 0, socket.inet_aton(ip))
            fcntl.ioctl(sock, request, told)
        for name in (b"lo", b"line"):
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", name, _IFF_UP | _IFF_RUNNING))
    return os.open("/proc/self/ns/net", os.O_RDONLY), tun


# --- carrying -------------------------------------------------------------------------------------------


def _sum16(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class _Way(NamedTuple):
    """A TCP connection in one direction."""

    source: bytes
    target: bytes
    ports: bytes

    def back(self) -> _Way:
        return _Way(self.target, self.source, self.ports[2:] + self.ports[:2])


def _reset(way: _Way, seq: int) -> bytes:
    """An IPv4 packet that ends a TCP connection (RFC 9293 3.5.2)."""
    source, target, ports = way
    tcp = ports + struct.pack("!IIBBHHH", seq, 0, 5 << 4, _RST, 0, 0, 0)
    check = _sum16(source + target + struct.pack("!BBH", 0, _TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, _TCP, 0) + source + target
    return head[:10] + struct.pack("!H", _sum16(head)) + head[12:] + tcp


class _Carrier:
    """Takes packets from one side, and hands them to the other when their time has come."""

    def __init__(self, near: int, far: int, rng: random.Random) -> None:
        self.policy = Policy()
        self._near = near
        self._other = {near: far, far: near}
        self._rng = rng
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._last: dict[int, int] = {}
        self._next: dict[_Way, int] = {}
        """What this end of a TCP connection waits for: a reset is worth something with that number alone."""
        self._forgotten: set[_Way] = set()
        self._counts = {"near": 0, "far": 0, "lost": 0, "overtaken": 0}

    def take(self, side: int) -> None:
        """Everything that this side has sent."""
        now = time.monotonic()
        while True:
            try:
                packet = os.read(side, 65536)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:
                continue  # the kernel's own IPv6 chatter
            policy = self.policy
            unknown = self._unknown(packet)
            if policy.cut or self._rng.random() < policy.loss:
                self._counts["lost"] += 1
                continue
            if unknown is not None:
                self._refuse(side, unknown)
                continue
            if side != self._near and policy.cut_after is not None:
                policy.cut_after -= len(packet)
                if policy.cut_after <= 0:
                    policy.cut, policy.cut_after = True, None
            late = policy.delay_ms + self._rng.uniform(-policy.jitter_ms, policy.jitter_ms)
            self._push(now + max(0.0, late) / 1000, self._other[side], packet)

    def _push(self, due: float, side: int, packet: bytes) -> None:
        self._number += 1
        heapq.heappush(self._queue, (due, self._number, side, packet))

    def _unknown(self, packet: bytes) -> _Way | None:
        """Its connection, if that was forgotten."""
        head = (packet[0] & 0x0F) * 4
        if packet[9] != _TCP or len(packet) < head + 20:
            return None
        way = _Way(packet[12:16], packet[16:20], packet[head : head + 4])
        flags = packet[head + 13]
        if flags & _SYN:  # a new one
            self._forgotten -= {way, way.back()}
        if flags & _ACK:
            self._next[way] = int.from_bytes(packet[head + 8 : head + 12])
        return way if way in self._forgotten and not flags & _RST else None

    def _refuse(self, side: int, way: _Way) -> None:
        """Tell both ends."""
        for to, end in ((side, way), (self._other[side], way.back())):
            if end in self._next:
                self._push(0, to, _reset(end.back(), self._next[end]))

    def hand_over(self) -> float | None:
        """What is due. Seconds until the next is; None where nothing is on its way."""
        while self._queue:
            due, number, side, packet = self._queue[0]
            if (wait := due - time.monotonic()) > 0:
                return wait
            heapq.heappop(self._queue)
            try:
                os.write(side, packet)
            except OSError:  # the device's queue is full: lost, as on any router
                self._counts["lost"] += 1
                continue
            self._counts["near" if side == self._near else "far"] += len(packet)
            self._counts["overtaken"] += number < self._last.get(side, 0)
            self._last[side] = max(number, self._last.get(side, 0))
        return None

    def answer(self, request: dict[str, Any]) -> dict[str, int]:
        """A request of the test."""
        self.policy = Policy(**{**asdict(self.policy), **request.get("set", {})})
        if self.policy.cut:  # what was on its way is lost too
            self._counts["lost"] += len(self._queue)
            self._queue.clear()
        if request.get("forget"):
            self._forgotten |= set(self._next)
        return {**self._counts, "cut": self.policy.cut}


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Make both sides, say where they are, and carry until the end of input."""
    try:
        user = _become_master()
        near_ns, near = _side(NEAR, FAR)
        far_ns, far = _side(FAR, NEAR)
    except OSError as error:
        needed = (
            "the network tests need two network namespaces with a TUN device each: run them as root, or allow"
            " user namespaces (sysctl kernel.unprivileged_userns_clone=1) and see to it that /dev/net/tun is"
            f" there (modprobe tun) and may be opened: {error}"
        )
        _say({"error": needed})
        sys.stdin.read()
        return
    _say({"user": user, "sides": [near_ns, far_ns]})
    carrier = _Carrier(near, far, random.Random(int(sys.argv[1])))
    with selectors.DefaultSelector() as waiting:
        for fd in (0, near, far):
            waiting.register(fd, selectors.EVENT_READ)
        requests = b""
        while True:
            for key, _ in waiting.select(carrier.hand_over()):
                if key.fd != 0:
                    carrier.take(key.fd)
                    continue
                if not (read := os.read(0, 65536)):
                    return
                *lines, requests = (requests + read).split(b"\n")
                for line in lines:
                    _say(carrier.answer(json.loads(line)))


if __name__ == "__main__":
    main()
