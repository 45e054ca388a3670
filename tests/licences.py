"""The licences of what the gateway is installed with: ``python -m tests.licences`` prints docs/licences.md.

They come from the packages' own metadata. A licence that nobody here has looked at is refused by name.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent

ALLOWED = {
    "Apache-2.0",
    "Apache-2.0 AND BSD-2-Clause",
    "Apache-2.0 AND MIT",
    "Apache-2.0 OR BSD-3-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "LGPL-2.1-or-later",
    "MIT",
    "MIT OR Apache-2.0",
    "MIT-0",
    "MPL-2.0 AND (Apache-2.0 OR MIT)",
    "OLDAP-2.8",
    "PSF-2.0",
}
"""Whole SPDX expressions: what is new is to be read by a person before it stands here. All of them let a
program under Apache-2.0 be shipped with the unchanged library beside it."""

_READ = {"hidapi": "BSD-3-Clause", "pyserial": "BSD-3-Clause"}
"""Where the metadata is no SPDX expression: what the files of the package say. hidapi gives a choice of
three, of which this is the one taken."""

_SPOKEN = {"Apache 2.0": "Apache-2.0", "MIT License": "MIT"}
"""How some packages say it, and the SPDX name of what they mean."""

_HEAD = """\
# Licences of what is installed with the gateway

Made by `make licences` from the metadata of the packages in `locks/gateway.txt` and `locks/central.txt`; a
test holds it to them, and refuses a licence that nobody has looked at. The gateway itself is Apache-2.0.

| package | licence | for |
|---|---|---|
"""

_TAIL = """
Each package brings the text of its licence in its `dist-info` folder. Some wheels also carry compiled
libraries: `hidapi` libusb and libudev (LGPL-2.1-or-later) and what those need, `gpiod` libgpiod
(LGPL-2.1-or-later), `lmdb` LMDB (OLDAP-2.8), `cryptography` OpenSSL (Apache-2.0). They are used unchanged;
who wants another one in its place builds that package from its source.
"""


def names(lock: str) -> list[str]:
    """The packages of a lock that are installed on Linux."""
    return re.findall(r"^([\w.-]+)==(?!.*win32)", (ROOT / "locks" / lock).read_text(), re.MULTILINE)


def licence(package: str) -> str:
    """The SPDX expression of an installed package, or what it says instead of one."""
    told = metadata(package)
    spoken = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    said = told.get("License-Expression") or _READ.get(package) or told.get("License") or "; ".join(spoken)
    return _SPOKEN.get(said, said)


def page() -> str:
    """docs/licences.md."""
    gate = names("gateway.txt")
    rows = (
        f"| {name} | {licence(name)} | {'the gateway' if name in gate else '`gateway central`'} |\n"
        for name in names("central.txt")
    )
    return _HEAD + "".join(rows) + _TAIL


if __name__ == "__main__":
    sys.stdout.write(page())
