"""USB devices, made of the kernel's own gadget stack and plugged into its own host side (``dummy_hcd``).

Each socket of the guest is a number from 0 to 7. Source: Documentation/usb/gadget_configfs.rst of the kernel.
"""

import subprocess
import time
from pathlib import Path

CONFIG = Path("/sys/kernel/config/usb_gadget")
SOCKETS = 8


def sockets() -> None:
    """The USB controllers of this computer; asked again it changes nothing."""
    for module in (f"dummy_hcd num={SOCKETS}", "libcomposite"):
        subprocess.run(["modprobe", *module.split()], check=True)
    mount()


def mount() -> None:
    """configfs, if nobody mounted it yet."""
    if subprocess.run(["mountpoint", "-q", "/sys/kernel/config"]).returncode:
        subprocess.run(["mount", "-t", "configfs", "none", "/sys/kernel/config"], check=True)


def make(
    name: str,
    function: str,
    *,
    vendor: int,
    product: int,
    maker: str,
    label: str,
    serial: str = "",
    settings: dict[str, bytes] | None = None,
) -> Path:
    """A device, not plugged in yet. ``function`` is configfs's, ``hid.NAME`` or ``acm.NAME`` for instance;
    ``settings`` are its attributes. Gives the function's folder."""
    sockets()
    device = CONFIG / name
    device.mkdir()
    (device / "idVendor").write_text(hex(vendor))
    (device / "idProduct").write_text(hex(product))
    strings = device / "strings/0x409"
    strings.mkdir()
    (strings / "manufacturer").write_text(maker)
    (strings / "product").write_text(label)
    if serial:
        (strings / "serialnumber").write_text(serial)
    folder = device / "functions" / function
    folder.mkdir()
    for key, value in (settings or {}).items():
        (folder / key).write_bytes(value)
    configuration = device / "configs/c.1"
    configuration.mkdir()
    (configuration / folder.name).symlink_to(folder)
    return folder


def plug(name: str, socket: int) -> None:
    """Into a socket of the computer. The device's nodes come as udev makes them."""
    (CONFIG / name / "UDC").write_text(f"dummy_udc.{socket}")


def unplug(name: str) -> None:
    """Out of whichever socket it is in; nothing happens if it is in none."""
    if (CONFIG / name / "UDC").read_text().strip():
        (CONFIG / name / "UDC").write_text("\n")


def pull(name: str) -> None:
    """Out, as soon as what left it has had the time to arrive."""
    time.sleep(0.05)
    unplug(name)


def scrap(name: str) -> None:
    """The device is gone for good. The kernel's gadget stack has room for four HID devices at a time."""
    unplug(name)
    device = CONFIG / name
    for link in device.glob("configs/c.1/*.*"):
        link.unlink()
    for folder in ("configs/c.1", "functions/*", "strings/0x409", ""):
        for found in device.glob(folder) if folder else [device]:
            found.rmdir()


def plugged(name: str) -> bool:
    return bool((CONFIG / name / "UDC").read_text().strip())


def node(device: str, timeout: float = 10) -> Path:
    """The device side's node of a function, by its ``MAJOR:MINOR`` (``dev`` attribute), once it is there."""
    device = device.strip()
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        for uevent in (*Path("/sys/class/hidg").glob("*/dev"), *Path("/sys/class/tty").glob("ttyGS*/dev")):
            if uevent.read_text().strip() == device and Path("/dev", uevent.parent.name).exists():
                return Path("/dev", uevent.parent.name)
        time.sleep(0.02)
    raise TimeoutError(f"no node {device}")
