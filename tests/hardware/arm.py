"""A guest for 64-bit Arm: the nearest thing to a Raspberry Pi that a PC can be.

Debian's own arm64 packages and kernel, on the processor of a Raspberry Pi 4 and QEMU's board ``virt``. Its
GPIO chip is a PL061, a real one to the kernel. ``python -m tests.hardware.arm`` makes the installed disk.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.hardware import debian, install, parcel
from tests.hardware.debian import Base
from tests.hardware.guest import Guest
from tests.hardware.kept import HERE, digest, made, run

CHIP = "9030000.pl061"
"""The label of the board's GPIO chip. Its lines 0 to 2 are connected to nothing; 3 is the power button."""


class ArmGuest(Guest):
    """A computer with a Cortex-A72."""

    MACHINE = ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72")
    CONSOLE = "ttyAMA0"


def base() -> Base:
    """Debian for arm64, as it comes."""
    inputs = [HERE / name for name in ("arm.py", "debian.py", "inside/init", "inside/bench-agent.service")]
    with made("base-arm", digest(inputs)) as (final, folder):
        if folder is not None:
            _build_base(folder)
    return Base(final)


def _build_base(folder: Path) -> None:
    root = folder / "root"
    packages = f"--include={','.join(debian.PACKAGES.split())}"
    run("debootstrap", "--variant=minbase", "--arch=arm64", packages, debian.SUITE, root, *debian._mirror())
    finish(folder, root)


def finish(folder: Path, root: Path) -> None:
    """Kernel, initrd and disk for a first file system."""
    version = _kernel(folder, root)
    debian._configure(root, version)
    debian._initrd(folder, root, version)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "root.ext4", "3G")
    shutil.rmtree(root)


def _kernel(folder: Path, root: Path) -> str:
    """Debian's kernel with the modules that a gate can meet; its version."""
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    run("chroot", root, "apt-get", "update", "-q")
    depends = run("chroot", root, "apt-cache", "depends", "linux-image-arm64")
    package = next(word for word in depends.split() if word.startswith("linux-image-6"))
    fetch = f"cd /tmp; apt-get download -q {package}; dpkg -x {package}_*.deb kernel"
    run("chroot", root, "sh", "-ec", fetch)
    version, kernel = package.removeprefix("linux-image-"), root / "tmp/kernel"
    shutil.copy(kernel / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    source, target = kernel / "lib/modules" / version, root / "lib/modules" / version
    for module in source.rglob("*"):
        relative = module.relative_to(source)
        if module.is_file() and (module.suffix != ".ko" or debian.MODULES.search(f"/{relative}")):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module, target / relative)
    shutil.rmtree(root / "tmp")
    (root / "tmp").mkdir(mode=0o1777)
    run("chroot", root, "depmod", version)
    return version


def brought() -> parcel.Parcel:
    """The Debian package for it."""
    name = digest([file for file in parcel.sources() if file.name != "README.md"], "arm64")
    with made("parcel-arm", name) as (final, folder):
        if folder is not None:
            parcel.package(folder / "packages", "arm64")
    return parcel.Parcel(final, name)


def guest(folder: Path, disk: Path, base: Base, brought: parcel.Parcel) -> ArmGuest:
    """A computer, switched off."""
    return ArmGuest(folder, base, disk, parcel=brought.folder, cpus=2)


def disk() -> Path:
    """The disk after section "Install" of README.md was followed; made by booting a guest."""
    debian_, package = base(), brought()
    name = digest([], "installed", debian_.folder.name, package.digest, *install.steps())
    with made("installed-arm", name) as (final, folder):
        if folder is not None:
            with tempfile.TemporaryDirectory() as scratch:
                install.follow(guest(Path(scratch), debian_.disk, debian_, package), folder)
    return final / "disk.ext4"


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("hardware: debootstrap needs root: sudo make test-hardware-arm")
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        sys.exit("hardware: the kernel starts no Arm programs here: sudo systemctl restart systemd-binfmt")
    sys.stdout.write(f"{disk()}\n")
