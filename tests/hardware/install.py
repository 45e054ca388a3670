"""The disk of a gate PC after a technician went through the section "Install" of README.md, line by line.

``python -m tests.hardware.install`` makes it, with all that it needs, and prints where it lies.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hardware import debian, parcel
from tests.hardware.guest import Guest
from tests.hardware.kept import CHECKOUT, digest, made

ADDRESS = "URL-OF-THIS-REPOSITORY"


def steps(section: str = "Install") -> list[str]:
    """The shell blocks of the section, in their order."""
    text = (CHECKOUT / "README.md").read_text()
    found = re.search(rf"^## {section}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"README.md has no section {section}"
    return re.findall(r"^```sh\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)


def disk() -> Path:
    """The installed disk; made by booting a guest if the checkout changed since. While something else than
    the installation is being developed, ``GATEWAY_HARDWARE_DISK`` may name one that was made before."""
    if given := os.environ.get("GATEWAY_HARDWARE_DISK"):
        sys.stderr.write(f"hardware: {given} is used as it is, whatever this checkout says\n")
        return Path(given)
    base, brought = debian.base(), parcel.parcel()
    name = digest([], "installed", base.folder.name, brought.digest, *steps())
    with made("installed", name) as (final, folder):
        if folder is not None:
            _install(folder, base, brought)
    return final / "disk.ext4"


def _install(folder: Path, base: debian.Base, brought: parcel.Parcel) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        follow(Guest(Path(scratch), base, base.disk, parcel=brought.folder, cpus=2), folder)


def follow(guest: Guest, folder: Path, section: str = "Install") -> None:
    """Does in a new guest what the section says; leaves in ``folder`` what was said, and the disk."""
    try:
        guest.boot(until="system")
        # The package lies where the technician is, as if just downloaded.
        script = "\n".join(["cp /parcel/packages/*.deb .", "set -ex", *steps(section)])
        script = script.replace(ADDRESS, "file:///parcel/repository")
        done = guest.run(script, user="technician", timeout=1200)
        (folder / "session.txt").write_text(f"{script}\n--- exit {done.code}\n{done.out}\n{done.err}")
        if done.code != 0:
            raise SystemExit(f"hardware: README.md, section {section}, failed:\n{done.err[-3000:]}")
        guest.off()
    finally:
        guest.cut()
    disk = guest.folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, folder / "disk.ext4"], check=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("hardware: debootstrap needs root: sudo make test-hardware")
    sys.stdout.write(f"{disk()}\n")
