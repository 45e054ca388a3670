"""Visitors without end, and a computer that has other things to do.

``begin`` lets scanners read one code after another, and tells the host of each before its first byte leaves:
``{"stream":"typed","scanner":NAME,"code":CODE,"at":µs}``, on the clock of the GPIO lines.
"""

import importlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

import lines
import wire

_going: list[threading.Thread] = []
_over = threading.Event()
_burners: list[subprocess.Popen[bytes]] = []


def type(kind: str, name: str, code: str) -> None:
    """A scanner read this. ``kind`` is its module here."""
    wire.say(
        {
            "stream": "typed",
            "scanner": name,
            "code": code,
            "at": time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000,
        }
    )
    importlib.import_module(kind).type(name=name, code=code)


def begin(
    scanners: list[list[Any]],
    label: str = "gate-lines",
    line: int = 1,
    ahead: int | None = None,
    mark: str | None = None,
    rest: dict[str, float] | None = None,
) -> None:
    """Starts them all at once, each in a thread: a scanner is [kind, name, its codes].

    With ``ahead`` a code is read when at most so many before it have not opened the lane yet, whose relay is
    on ``line``. With ``mark`` each pulse is marked with its number in the log of this dm-log-writes device,
    and the visitor after it waits until it is. ``rest`` are seconds between two codes of a scanner, by name.
    """
    _over.clear()
    begun = lines.pulses.get((label, line), 0)
    marked = 0

    def opened() -> int:
        return lines.pulses.get((label, line), 0) - begun

    def visitors(kind: str, name: str, codes: list[str]) -> None:
        for number, code in enumerate(codes):
            while ahead is not None and number - (marked if mark else opened()) > ahead:
                if _over.wait(0.002):
                    return
            if _over.is_set():
                return
            type(kind, name, code)
            time.sleep((rest or {}).get(name, 0))

    def marks(device: str) -> None:
        nonlocal marked
        while not _over.wait(0.002):
            while marked < opened():
                subprocess.run(["dmsetup", "message", device, "0", "mark", f"pulse-{marked + 1}"], check=True)
                marked += 1

    _going[:] = [threading.Thread(target=visitors, args=each, daemon=True) for each in scanners]
    if mark:
        threading.Thread(target=marks, args=(mark,), daemon=True).start()
    for thread in _going:
        thread.start()


def end(timeout: float = 300) -> None:
    """Comes back when every code was read."""
    for thread in _going:
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError("the scanners are not through yet")
    _over.set()


def silence(seconds: float) -> None:
    """Comes back when so much time has passed here: a silence between two codes."""
    time.sleep(seconds)


def overflow(kind: str, name: str, code: str, unit: str = "gateway") -> None:
    """A scanner reads this while the gate stands still."""
    main = subprocess.run(["systemctl", "show", "-P", "MainPID", unit], capture_output=True, check=True)
    os.kill(int(main.stdout), signal.SIGSTOP)
    try:
        type(kind, name, code)
    finally:
        os.kill(int(main.stdout), signal.SIGCONT)


def busy(programs: int = 2) -> None:
    """Programs that do nothing but compute, and one that writes to the disk as fast as that takes it. Of
    ordinary priority, though the agent has a high one."""
    write = "while :; do dd if=/dev/zero of=/var/tmp/ballast bs=64k count=16 conv=fdatasync 2>&-; done"
    for program in (write, *["while :; do :; done"] * programs):
        burner = subprocess.Popen(["sh", "-c", program], start_new_session=True)
        os.setpriority(os.PRIO_PROCESS, burner.pid, 0)
        _burners.append(burner)


def calm() -> None:
    """Ends them."""
    for burner in _burners:
        os.killpg(burner.pid, 9)
        burner.wait()
    _burners.clear()
