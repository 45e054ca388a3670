"""The guest's Debian: kernel, first file system and disk, from Debian's packages."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.hardware.kept import HERE, digest, made, run

SUITE = "bookworm"
"""The release of the guest. Its Python is 3.11."""
PACKAGES = """
    python3 python3-venv udev kmod systemd systemd-sysv dbus git sudo dmsetup e2fsprogs busybox-static
    usbutils procps util-linux login sqlite3
"""
NEEDED_AT_BOOT = ("virtio_pci", "virtio_blk", "ext4")
MODULES = re.compile(
    r"/(usb|hid|hidraw|input|gpio|tty|virtio|char|md|dax|block|lib|crypto|arch|extra|mfd"
    r"|net/(9p|core|unix)|fs/(ext4|jbd2|9p|configfs|overlayfs|fuse|mbcache|netfs|fscache))\b"
)
"""The parts of the kernel that come along: no sound, no graphics, no network cards."""


@dataclass(frozen=True)
class Base:
    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.gz"

    @property
    def disk(self) -> Path:
        return self.folder / "root.ext4"


def base() -> Base:
    """Debian, as it comes."""
    inputs = [HERE / "debian.py", HERE / "inside/init", HERE / "inside/bench-agent.service"]
    with made("base", digest(inputs)) as (final, folder):
        if folder is not None:
            _build_base(folder)
    return Base(final)


def _mirror() -> list[str]:
    """The first Debian archive of this host's own configuration; where it has none, debootstrap knows one."""
    for file in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))):
        text = file.read_text() if file.exists() else ""
        found = re.search(r"^(?:deb(?:\s+\[[^\]]*\])?|URIs:)\s+(\S+/debian/?)(?:\s|$)", text, re.MULTILINE)
        if found:
            return [found[1]]
    return []


def _build_base(folder: Path) -> None:
    root, builder = folder / "root", folder / "builder"
    run(
        "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES.split())}", SUITE, root, *_mirror()
    )
    version = _kernel(folder, root, builder)
    shutil.rmtree(builder)
    _configure(root, version)
    _initrd(folder, root, version)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "root.ext4", "3G")
    shutil.rmtree(root)


def _kernel(folder: Path, root: Path, builder: Path) -> str:
    """Debian's kernel with the modules that a gate can meet, and gpio-sim, which Debian leaves out."""
    run("cp", "-a", root, builder)
    shutil.copytree("/etc/apt/apt.conf.d", builder / "etc/apt/apt.conf.d", dirs_exist_ok=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", builder / "etc" / name)

    def inside(command: str) -> str:
        return run(
            "chroot", builder, "sh", "-ec", command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )

    inside("apt-get update -q")
    inside("apt-get install -qy --no-install-recommends linux-headers-amd64 gcc-12 make xz-utils")
    version = (
        next(p.name for p in (builder / "lib/modules").iterdir())
        if (builder / "lib/modules").exists()
        else ""
    )
    version = version or inside("ls /usr/src | sed -n 's/^linux-headers-\\(.*-amd64\\)$/\\1/p'").strip()
    wanted = "drivers/gpio/gpio-sim.c drivers/gpio/gpiolib.h kernel/irq/irq_sim.c"
    inside(
        f"""mkdir /build; cd /build
        apt-get download -q linux-image-{version} linux-source-6.1
        dpkg -x linux-image-*.deb kernel
        dpkg-deb --fsys-tarfile linux-source-*.deb | tar x ./usr/src/linux-source-6.1.tar.xz
        tar xf usr/src/linux-source-6.1.tar.xz --strip-components=1 --wildcards $(printf '*/%s ' {wanted})
        mkdir sim
        cp {wanted} sim"""
    )
    # The kernel does not export irq_to_desc; what is behind it can be reached through what it does export.
    source = builder / "build/sim/irq_sim.c"
    text = source.read_text()
    changed = text.replace("irq_to_desc(irqnum)", "irq_data_to_desc(irq_get_irq_data(irqnum))")
    if changed == text:
        raise SystemExit(
            "hardware: irq_sim.c of this kernel is not the one that tests/hardware/debian.py knows"
        )
    source.write_text(changed)
    (builder / "build/sim/Makefile").write_text("obj-m := gpiosim.o\ngpiosim-y := gpio-sim.o irq_sim.o\n")
    inside(f"make -C /usr/src/linux-headers-{version} M=/build/sim modules CC=gcc-12")
    kernel = builder / "build/kernel"
    shutil.copy(kernel / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    target = root / "lib/modules" / version
    for module in (kernel / "lib/modules" / version).rglob("*"):
        relative = module.relative_to(kernel / "lib/modules" / version)
        if module.is_file() and (module.suffix != ".ko" or MODULES.search(f"/{relative}")):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module, target / relative)
    (target / "extra").mkdir()
    shutil.copy(builder / "build/sim/gpiosim.ko", target / "extra")
    run("chroot", root, "depmod", version)
    return version


def _configure(root: Path, version: str) -> None:
    """Debian as a technician finds it, and the bench's own way in."""
    etc = root / "etc"
    (etc / "fstab").write_text(
        "/dev/vda / ext4 defaults 0 1\n"
        "bench /bench 9p trans=virtio,version=9p2000.L,ro,msize=262144 0 0\n"
        "parcel /parcel 9p trans=virtio,version=9p2000.L,ro,msize=262144,nofail 0 0\n"
    )
    for folder in ("bench", "parcel"):
        (root / folder).mkdir()
    (etc / "hostname").write_text("gate\n")
    (etc / "hosts").write_text("127.0.0.1 localhost gate\n")
    (etc / "systemd/journald.conf").write_text(
        "[Journal]\nStorage=persistent\nForwardToConsole=no\nRateLimitBurst=0\n"
    )
    (etc / "modules-load.d/bench.conf").write_text("virtio_console\n9pnet_virtio\n9p\n")
    (etc / "pip.conf").write_text(
        "[global]\nno-index = true\nfind-links = /parcel/wheels\nroot-user-action = ignore\n"
    )
    shutil.copy(HERE / "inside" / "bench-agent.service", etc / "systemd/system/bench-agent.service")
    run("chroot", root, "useradd", "-m", "-s", "/bin/bash", "technician")
    (etc / "sudoers.d/technician").write_text("technician ALL=(ALL) NOPASSWD: ALL\n")
    run("chroot", root, "git", "config", "--system", "--add", "safe.directory", "*")
    run("chroot", root, "systemctl", "enable", "-q", "bench-agent.service")
    not_here = "systemd-timesyncd.service e2scrub_reap.service"
    timers = "apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim man-db"
    masked = [*not_here.split(), *(f"{timer}.timer" for timer in timers.split())]
    run("chroot", root, "systemctl", "mask", "-q", *masked)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)


def _initrd(folder: Path, root: Path, version: str) -> None:
    """Busybox, and the modules of the disk in an order in which each finds what it needs."""
    tree, modules = folder / "initrd", root / "lib/modules" / version
    for name in ("bin", "m", "new", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    shutil.copy(HERE / "inside/init", tree / "init")
    (tree / "init").chmod(0o755)
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[Path(path).stem.replace("-", "_")] = (path, others.split())
    order: list[str] = []

    def add(path: str) -> None:
        for other in needs[Path(path).stem.replace("-", "_")][1]:
            add(other)
        if path not in order:
            order.append(path)

    for soft in ("crc32c_generic", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", *NEEDED_AT_BOOT):
        if soft in needs:
            add(needs[soft][0])
    for path in order:
        shutil.copy(modules / path, tree / "m")
    (tree / "m/order").write_text("".join(f"{Path(p).name}\n" for p in order))
    run("sh", "-c", "find . | cpio -o -H newc | gzip -1 > ../initrd.gz", cwd=tree)
    shutil.rmtree(tree)
