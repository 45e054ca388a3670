"""The Debian package, built for both machines and taken apart. ``make test-package``."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import _parser
from tests.test_packaging import ROOT, installed

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
PYTHONS = ("3.11", "3.13")
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Package:
    file: Path
    tree: Path
    """What it unpacks."""
    control: Path
    """Its scripts and its description."""
    listed: dict[str, tuple[str, str]]
    """Mode and owner of each path, as dpkg would unpack them."""
    machine: str

    def site(self, python: str) -> Path:
        return self.tree / f"opt/gateway/lib/python{python}/site-packages"


def run(*words: str | Path, **options: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **options})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(architecture: str, out: Path) -> Path:
    """A package, hardly compressed."""
    script = ROOT / "debian/build.py"
    words = ("--arch", architecture, "--out", str(out), "--level", "0")
    return Path(run(sys.executable, script, *words).strip())


@pytest.fixture(scope="module", params=MACHINES)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package for one machine, built and unpacked."""
    folder = tmp_path_factory.mktemp(request.param)
    file = build(request.param, folder)
    run("dpkg-deb", "--extract", file, folder / "tree")
    run("dpkg-deb", "--control", file, folder / "control")
    listed = {}
    for line in run("dpkg-deb", "--contents", file).splitlines():
        mode, owner, *_, path = re.sub(r" (->|link to) .*", "", line).split()
        listed[path.removeprefix(".")] = (mode, owner)
    return Package(file, folder / "tree", folder / "control", listed, MACHINES[request.param])


@pytest.fixture(scope="module")
def native(package: Package) -> Callable[..., str]:
    """Runs the unpacked program with this machine's Python, if the package is for it: its standard output."""

    def gateway(*words: str) -> str:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        path = str(package.site(python))
        code = f"import sys; sys.path.insert(0, {path!r}); from gateway.cli import entry; entry()"
        return run(sys.executable, "-S", "-I", "-c", code, *words)

    return gateway


def test_it_describes_itself(package: Package) -> None:
    """Name, version, machine and dependencies are those of this program."""
    fields = dict(re.findall(r"^([\w-]+): (.+)$", (package.control / "control").read_text(), re.MULTILINE))
    assert fields["Package"] == "entry-scan-gateway"
    assert re.fullmatch(re.escape(__version__) + r"(\+git[\d.]+)?", fields["Version"])
    assert MACHINES[fields["Architecture"]] == package.machine
    assert "python3" in fields["Depends"]
    assert package.file.name == f"entry-scan-gateway_{fields['Version']}_{fields['Architecture']}.deb"


def test_everything_belongs_to_root_and_nothing_is_open(package: Package) -> None:
    """No file of another owner, none that others than root may write, nothing with the owner's rights."""
    for path, (mode, owner) in package.listed.items():
        assert owner == "root/root", path
        assert mode[0] == "l" or re.fullmatch(r"[-dh]rw[-x]r-[-x]r-[-x]", mode), (path, mode)


def test_it_has_what_the_lists_say(package: Package) -> None:
    """Command, units, rules, completion, manual, pages, files for Prometheus, and /etc/gateway are there."""
    there = {
        "/etc/gateway/",
        "/opt/gateway/pyvenv.cfg",
        "/usr/bin/gateway",
        "/usr/share/bash-completion/completions/gateway",
        "/usr/share/doc/entry-scan-gateway/changelog.gz",
        "/usr/share/doc/entry-scan-gateway/copyright",
        "/usr/share/man/man1/gateway.1.gz",
        "/usr/share/zsh/vendor-completions/_gateway",
        *(f"/{folder}/{Path(name).name}" for name, folder in installed().items()),
        *(f"/usr/share/doc/entry-scan-gateway/docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
        *(
            f"/usr/share/doc/entry-scan-gateway/{file.relative_to(ROOT)}"
            for file in (ROOT / "monitoring").rglob("*")
            if file.is_file()
        ),
    }
    assert there <= package.listed.keys()
    outside = {path.split("/")[1] for path in package.listed if path != "/"}
    assert outside == {"etc", "lib", "opt", "usr"}


def test_the_environment_runs_debians_python(package: Package) -> None:
    """The environment's interpreter is the system's, and Debian's own packages are not seen through it."""
    environment = package.tree / "opt/gateway"
    assert os.readlink(environment / "bin/python3") == "/usr/bin/python3"
    assert os.readlink(package.tree / "usr/bin/gateway") == "/opt/gateway/bin/gateway"
    assert (environment / "bin/gateway").read_text().startswith("#!/opt/gateway/bin/python3 -I\n")
    settings = (environment / "pyvenv.cfg").read_text().splitlines()
    assert {"home = /usr/bin", "include-system-site-packages = false"} <= set(settings)


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_locked_is_in_it(package: Package, python: str) -> None:
    """For each Python: the packages of locks/central.txt and this one, and no other, in those versions."""
    locked = dict(
        re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "locks/central.txt").read_text(), re.MULTILINE)
    )
    found = {}
    for folder in package.site(python).glob("*.dist-info"):
        name, version = folder.name.removesuffix(".dist-info").rsplit("-", 1)
        found[name.replace("_", "-").lower()] = version
    assert found.pop("entry-scan-gateway") == __version__
    wanted = {name: version for name, version in locked.items() if name != "colorama"}  # that is Windows'
    assert found == wanted


@pytest.mark.parametrize("python", PYTHONS)
def test_every_library_is_for_that_machine_and_python(package: Package, python: str) -> None:
    """Each compiled file is for the package's machine, links only what the package depends on, and can be
    loaded by the kernel of a Raspberry Pi 5, whose pages have 16 KiB."""
    headers = ("--wide", "--file-header", "--program-headers", "--dynamic", "--version-info")
    system = r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libz|ld-linux-\S+)\.so"
    bundled = {path.name for path in package.site(python).glob("*.libs/*")}
    libraries = [
        path for path in package.site(python).rglob("*") if path.is_file() and ".so" in path.suffixes
    ]
    assert len(libraries) > 20
    for path in libraries:
        told = run("readelf", *headers, path)
        machine = re.search(r"Machine: +(.+)", told)
        assert machine is not None
        assert {"x86_64": "X86-64", "aarch64": "AArch64"}[package.machine] in machine[1], path
        if found := re.search(r"\.cpython-(\d+)-(\w+)-", path.name):
            assert found.groups() == (python.replace(".", ""), package.machine), path
        loads = [int(line.split()[-1], 16) for line in told.splitlines() if line.startswith("  LOAD")]
        if package.machine == "aarch64":
            assert min(loads) >= 1 << 14, path
        versions = re.findall(r"Name: GLIBC_([\d.]+)", told)
        assert max([tuple(map(int, version.split("."))) for version in versions], default=(0,)) <= (2, 28), (
            path
        )
        near = bundled | {other.name for other in path.parent.iterdir()}
        for needed in re.findall(r"\(NEEDED\) .*\[(.+)\]", told):
            assert needed in near or re.match(system, needed), (path, needed)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_program_is_whole(package: Package, python: str) -> None:
    """Each file of the program's own packages that git knows is there, byte for byte."""
    tracked = run("git", "-C", ROOT, "ls-files", "gateway").splitlines()
    assert len(tracked) > 100
    for name in tracked:
        assert (package.site(python) / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_nothing_tells_where_it_was_built(package: Package) -> None:
    """No file names the build's folder or this checkout's, and no tool's leavings are in it."""
    told = [
        str(ROOT).encode(),
        b"/debian/entry-scan-gateway/opt",
        f"entry-scan-gateway-{__version__}+git".encode(),
    ]
    for path in package.tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert not [word for word in told if word in data], path
    leavings = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", ".lock", "__pycache__"}
    assert not [path for path in package.listed if leavings & set(path.split("/"))]


def test_the_program_runs_from_it(package: Package, native: Callable[..., str]) -> None:
    """With the machine's Python and nothing but the package's own folder the program says its version and
    helps; for another machine its parts are only looked at, above."""
    if package.machine != platform.machine():
        assert package.site("3.11").is_dir()
        return
    assert native("--version") == f"gateway {__version__}\n"
    assert "turnstile" in native("--help")
    assert "serve" in native("central", "--help")


def commands(parser: argparse.ArgumentParser, before: str = "gateway") -> list[str]:
    """The command and all below it, as they are typed."""
    found = [before]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += commands(below, f"{before} {name}")
    return found


def test_manual_and_completion_have_each_command(package: Package) -> None:
    """gateway(1) formats without a warning and has each command; the shells' completions have each too."""
    page = package.tree / "usr/share/man/man1/gateway.1.gz"
    done = subprocess.run(
        ["man", "--warnings", "-l", page],
        env={**os.environ, "MANWIDTH": "200", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    text = re.sub(r"\s+", " ", done.stdout)
    bash = (package.tree / "usr/share/bash-completion/completions/gateway").read_text()
    zsh = (package.tree / "usr/share/zsh/vendor-completions/_gateway").read_text()
    run("bash", "-n", package.tree / "usr/share/bash-completion/completions/gateway")
    for command in commands(_parser()):
        assert command in text, command
        last = command.split()[-1]
        assert last in bash, command
        assert last in zsh, command


def test_the_units_are_valid(package: Package, tmp_path: Path) -> None:
    """systemd finds no fault with the units as they lie in the package, and their program is in it."""
    units = list((package.tree / "lib/systemd/system").iterdir())
    programs = {
        word
        for unit in units
        for word in re.findall(r"^Exec\w+=[-+!@:]*(/opt\S+)", unit.read_text(), re.MULTILINE)
    }
    assert programs == {"/opt/gateway/bin/gateway"}
    assert programs <= package.listed.keys()
    # The program is not on this machine, so one that is takes its place.
    for unit in units:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/gateway/bin/gateway", "/bin/true"))
    run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_the_scripts_are_shell(package: Package, name: str) -> None:
    """Each script of the package parses as Debian's sh, and every mark of debhelper's in it was filled in."""
    script = package.control / name
    run("dash", "-n", script)
    assert "#DEBHELPER#" not in script.read_text()


def test_lintian_has_nothing_to_say(package: Package) -> None:
    """Debian's own reviewer finds nothing but what debian/*.lintian-overrides explains."""
    done = subprocess.run(["lintian", package.file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_same_checkout_gives_the_same_bytes(package: Package, tmp_path: Path) -> None:
    """A second build makes the same file, bit by bit."""
    again = build(package.file.stem.rsplit("_", 1)[1], tmp_path)
    first, second = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (package.file, again))
    assert first == second
