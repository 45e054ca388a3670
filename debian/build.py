"""Builds the Debian package: ``make deb``, or ``make deb DEB="--arch arm64 --out DIR"``.

What goes in are the files of this checkout that git knows, in a folder of their own, so that neither a build
before this one nor anything else that lies about gets into the package.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "entry-scan-gateway"
ARCHITECTURES = ("amd64", "arm64")
NEEDED = {
    "dpkg-buildpackage": "sudo apt-get install dpkg-dev",
    "dh": "sudo apt-get install debhelper",
    "hardlink": "sudo apt-get install util-linux",
    "uv": "make deb",
    "shtab": "make deb",
    "argparse-manpage": "make deb",
}
"""Programs that it takes, and what brings them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the Debian package; prints where it lies.")
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: both")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    parser.add_argument("--level", type=int, choices=range(10), default=6, help="of the compression")
    options = parser.parse_args()
    # Beside this Python, or in the path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for tool, remedy in NEEDED.items():
        if shutil.which(tool) is None:
            sys.exit(f"build.py: {tool} is needed: {remedy}")
    for architecture in options.arch or ARCHITECTURES:
        sys.stdout.write(f"{build(architecture, options.out, options.level)}\n")


def build(architecture: str, out: Path, level: int = 6) -> Path:
    """One package, in the folder ``out``; its path.

    Args:
        architecture: Debian's name of the machine it is for; it need not be this one.
        level: of the compression, 0 to 9.
    """
    made = _when()
    version = _version(made)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / f"{NAME}-{version}"
        _copy(tree)
        (tree / "debian/changelog").write_text(_changelog(version, made))
        settings = {"GATEWAY_SITE": sysconfig.get_path("purelib"), "LEVEL": str(level)}
        command = ["dpkg-buildpackage", "--build=binary", "--unsigned-changes", "--no-check-builddeps"]
        done = subprocess.run(
            [*command, f"--host-arch={architecture}"],
            cwd=tree,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        package = Path(scratch) / f"{NAME}_{version}_{architecture}.deb"
        if done.returncode or not package.exists():
            sys.exit(f"{done.stdout}\nbuild.py: the package for {architecture} could not be built")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(package, out / package.name))


def _copy(tree: Path) -> None:
    """The checkout as it is: the files git knows, with the changes that are not committed yet."""
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)


def _when() -> datetime:
    """The time that every file in the package bears: ``SOURCE_DATE_EPOCH``, else the last commit's."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct")
    return datetime.fromtimestamp(int(epoch), UTC)


def _version(made: datetime) -> str:
    """The program's version; of a checkout between two releases more than the last and less than the next."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "gateway/__init__.py").read_text(), re.MULTILINE)
    assert found is not None, "gateway/__init__.py has no version"
    if f"v{found[1]}" in _git("tag", "--points-at", "HEAD").split():
        return found[1]
    return f"{found[1]}+git{made:%Y%m%d.%H%M%S}"


def _changelog(version: str, made: datetime) -> str:
    maintainer = re.search(r"^Maintainer: (.+)$", (ROOT / "debian/control").read_text(), re.MULTILINE)
    assert maintainer is not None, "debian/control has no maintainer"
    said = "  * What changed is in /usr/share/doc/entry-scan-gateway/changelog.gz."
    signed = f" -- {maintainer[1]}  {format_datetime(made)}"
    return f"{NAME} ({version}) stable; urgency=medium\n\n{said}\n\n{signed}\n"


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
