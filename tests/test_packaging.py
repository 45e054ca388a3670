"""What goes into the Debian package, without building it: tests/package/ does that."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.cli import _parser

ROOT = Path(__file__).parent.parent
DEBIAN = ROOT / "debian"


def installed() -> dict[str, str]:
    """Each file that debian/entry-scan-gateway.install names, and the folder it goes to."""
    lines = (DEBIAN / "entry-scan-gateway.install").read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


FOLDERS = {
    r".*\.(service|socket|timer|path|target)": "lib/systemd/system",
    r".*\.rules": "lib/udev/rules.d",
    r".*sysusers.*\.conf": "usr/lib/sysusers.d",
    r".*tmpfiles.*\.conf": "usr/lib/tmpfiles.d",
    r".*modules.*\.conf": "usr/lib/modules-load.d",
}
"""Where systemd and udev look for what."""


def test_no_unit_is_forgotten() -> None:
    """Every file in systemd/ is in the package, each in the folder where it is looked for."""
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert there == {name for name in installed() if name.startswith("systemd/")}
    for name, folder in installed().items():
        [meant] = [target for pattern, target in FOLDERS.items() if re.fullmatch(pattern, name)]
        assert folder == meant, name


def test_purge_forgets_the_users_that_were_made() -> None:
    """Each user and group of the sysusers.d files is named in the script that purges."""
    names = {
        line.split()[1]
        for name, folder in installed().items()
        if folder.endswith("sysusers.d")
        for line in (ROOT / name).read_text().splitlines()
        if line.startswith(("u ", "g ", "u! "))
    }
    purged = re.search(r"for name in ([\w -]+); do", (DEBIAN / "entry-scan-gateway.postrm").read_text())
    assert purged is not None
    assert names <= set(purged[1].split())


def test_the_bounds_of_python_are_those_of_its_trees() -> None:
    """debian/control asks for a Python whose packages are in the package, and for no other."""
    [line] = re.findall(r"^PYTHONS := (.+)$", (DEBIAN / "rules").read_text(), re.MULTILINE)
    assert line.split() == ["3.11", "3.13"]
    control = (DEBIAN / "control").read_text()
    for bound in (">= 3.11~", "<< 3.12~) | python3 (>= 3.13~", "<< 3.14~"):
        assert f"python3 ({bound})" in control
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


def test_the_manual_names_the_files_of_the_program() -> None:
    """The part of the manual that is written by hand names the configuration file that commands take."""
    assert str(_parser().parse_args(["gate"]).config) in (DEBIAN / "gateway.1.in").read_text()
