"""GPIO lines (gpio-sim), and a record of what was written to them, with the kernel's own time.

Outputs are heard through the kernel's trace event ``gpio_value``: each set of a line comes to the host as
``{"stream":"gpio","line":N,"value":V,"at":µs}`` on the monotonic clock, as it happens. Inputs are driven
by their pull. Source: Documentation/admin-guide/gpio/gpio-sim.rst.
"""

import re
import subprocess
import threading
import time
from pathlib import Path

import gadget
import wire

CONFIG = Path("/sys/kernel/config/gpio-sim")
SYSFS = Path("/sys/class/gpio")
TRACE = Path("/sys/kernel/tracing")
_SET = re.compile(r"\s(\d+\.\d+): gpio_value: (\d+) set +(\d)")
pulses: dict[tuple[str, int], int] = {}
"""How often each line of each chip was set to 1."""
_bases: dict[int, tuple[str, int]] = {}
"""First global number of a chip: its label, how many lines it has."""


def make(
    label: str = "gate-lines",
    lines: int = 8,
    names: dict[str, str] | None = None,
    hogs: list[int] | None = None,
) -> str:
    """A chip that programs find by its label. Gives the name that the kernel chose, ``gpiochip0``.
    ``names`` names lines, ``hogs`` are lines that the kernel keeps for itself."""
    subprocess.run(["modprobe", "gpiosim"], check=True)
    gadget.mount()
    chip = CONFIG / label
    chip.mkdir()
    bank = chip / "bank0"
    bank.mkdir()
    (bank / "num_lines").write_text(str(lines))
    (bank / "label").write_text(label)
    for number, name in (names or {}).items():
        (bank / f"line{number}").mkdir(exist_ok=True)
        (bank / f"line{number}/name").write_text(name)
    for number in hogs or []:
        (bank / f"line{number}").mkdir(exist_ok=True)
        hog = bank / f"line{number}/hog"
        hog.mkdir()
        (hog / "name").write_text("fan")
        (hog / "direction").write_text("output-high")
    _listen()
    return alive(label, True)


def alive(label: str, on: bool) -> str:
    """Takes a chip away, or brings it back. Gives the name that it has now, which need not be the old one."""
    bank = CONFIG / label / "bank0"
    (CONFIG / label / "live").write_text("1" if on else "0")
    for first in [first for first, (chip, _) in _bases.items() if chip == label]:
        del _bases[first]
    if not on:
        return ""
    hear(label, int((bank / "num_lines").read_text()))
    return name(label)


def hear(label: str, lines: int) -> None:
    """What is written to the lines of this chip is told from now on."""
    for base in SYSFS.glob("gpiochip*"):
        if (base / "label").read_text().strip() == label:
            _bases[int((base / "base").read_text())] = (label, lines)
    _listen()


def name(label: str = "gate-lines") -> str:
    """The chip's name now, ``gpiochip0`` for instance."""
    return (CONFIG / label / "bank0/chip_name").read_text().strip()


def take(line: int, label: str = "gate-lines") -> None:
    """Somebody else holds this line: the old interface in sysfs."""
    (SYSFS / "export").write_text(str(_number(label, line)))


def let_go(line: int, label: str = "gate-lines") -> None:
    """Nobody holds it any more."""
    (SYSFS / "unexport").write_text(str(_number(label, line)))


def _number(label: str, line: int) -> int:
    return next(first for first, (chip, _) in _bases.items() if chip == label) + line


def _line(label: str, number: int) -> Path:
    chip = CONFIG / label
    device, name = (chip / "dev_name").read_text().strip(), (chip / "bank0/chip_name").read_text().strip()
    return Path(f"/sys/devices/platform/{device}/{name}/sim_gpio{number}")


def pull(line: int, up: bool, label: str = "gate-lines") -> None:
    """What is wired to an input: high or low."""
    (_line(label, line) / "pull").write_text("pull-up" if up else "pull-down")


def pulled(line: int, label: str = "gate-lines") -> str:
    """Where its resistor, or what is wired to it, pulls a line: ``pull-up`` or ``pull-down``."""
    return (_line(label, line) / "pull").read_text().strip()


def value(line: int, label: str = "gate-lines") -> int:
    """The level of a line now."""
    return int((_line(label, line) / "value").read_text())


def signal(line: int, steps: list[tuple[bool, float]], label: str = "gate-lines") -> list[int]:
    """Drives an input through levels, each held so many ms. Gives when each was set, in µs, monotonic."""
    path, times = _line(label, line) / "pull", []
    for up, held in steps:
        path.write_text("pull-up" if up else "pull-down")
        times.append(time.monotonic_ns() // 1000)
        # In short sleeps: of a stall of the whole guest a single one would see nothing, and a contact that
        # was closed only while nobody ran was not closed.
        parts = max(1, round(held))
        for _ in range(parts):
            time.sleep(held / parts / 1000)
    return times


_listening = False


def _listen() -> None:
    global _listening
    if _listening:
        return
    _listening = True
    if not (TRACE / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "none", str(TRACE)], check=True)
    (TRACE / "trace_clock").write_text("mono")
    (TRACE / "events/gpio/gpio_value/enable").write_text("1")
    threading.Thread(target=_hear, daemon=True).start()


def _hear() -> None:
    with open(TRACE / "trace_pipe", buffering=1) as pipe:
        for text in pipe:
            if not (found := _SET.search(text)):
                continue
            number = int(found[2])
            for base, (label, lines) in list(_bases.items()):
                if base <= number < base + lines:
                    at = (label, number - base)
                    pulses[at] = pulses.get(at, 0) + int(found[3])
                    wire.say(
                        {
                            "stream": "gpio",
                            "label": label,
                            "line": number - base,
                            "value": int(found[3]),
                            "at": round(float(found[1]) * 1e6),
                        }
                    )
