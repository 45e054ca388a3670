"""What the technician brings: the Debian package; and for the way without it this checkout as a git
repository, and the wheels that it asks for.

The guest has no network. Its pip finds the wheels in a folder instead, through /etc/pip.conf.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.hardware.debian import SUITE
from tests.hardware.kept import CHECKOUT, digest, made, run

PYTHON = "3.11"
"""The guest's."""


@dataclass(frozen=True)
class Parcel:
    folder: Path
    digest: str


def parcel() -> Parcel:
    """The checkout with its uncommitted changes, and the wheels for it."""
    wheels = _wheels()
    # Of README.md only the section Install matters, and that is in the name of the installed disk.
    name = digest([f for f in sources() if f.name != "README.md"], wheels.name)
    with made("parcel", name) as (final, folder):
        if folder is not None:
            shutil.copytree(wheels, folder / "wheels")
            _repository(folder / "repository")
            package(folder / "packages", "amd64")
    return Parcel(final, name)


def _wheels() -> Path:
    """What ``pip install`` of this checkout asks for, for the guest's Python, and what builds it."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"], "pip", "wheel"]
    pins = CHECKOUT / "constraints.txt"
    with made("wheels", digest([pins], SUITE, *asked)) as (final, folder):
        if folder is not None:
            download(folder, asked, "x86_64")
    return final


def download(folder: Path, asked: list[str], machine: str) -> None:
    """Wheels for the guest's Python on ``machine``, ``x86_64`` or ``aarch64``; fails where one has none."""
    tags = [f"manylinux_2_{n}_{machine}" for n in (36, 34, 31, 28, 27, 17, 12, 5)]
    abis = [f"cp{PYTHON.replace('.', '')}", "abi3", "none"]
    options = [
        *("--quiet", "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
        *(f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")),
        *(f"--abi={abi}" for abi in abis),
    ]
    pins = CHECKOUT / "constraints.txt"
    run(sys.executable, "-m", "pip", "download", *options, "-c", pins, "-d", folder, *asked)


def package(folder: Path, architecture: str) -> None:
    """The Debian package of this checkout, hardly compressed."""
    options = ("--arch", architecture, "--level", "0", "--out", folder)
    run(sys.executable, CHECKOUT / "debian/build.py", *options)


def sources() -> list[Path]:
    """What a user gets: tracked and new files, without tests, benchmarks and the documentation."""
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files = [CHECKOUT / name for name in run("git", "-C", CHECKOUT, *words).split("\0") if name]
    left_out = {"tests", "bench", "docs", ".ci", "CHANGELOG.md"}
    return sorted(f for f in files if f.is_file() and f.relative_to(CHECKOUT).parts[0] not in left_out)


def _repository(target: Path) -> None:
    target.mkdir()
    for file in sources():
        copy = target / file.relative_to(CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    git = ("git", "-C", target, "-c", "user.name=bench", "-c", "user.email=bench@localhost")
    run(*git, "init", "-q", "-b", "main")
    run(*git, "add", "-Af")
    run(*git, "commit", "-qm", "the checkout as it is")
