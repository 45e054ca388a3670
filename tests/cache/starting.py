"""A gate of this program, started on stores that it must not touch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def refusal(data_dir: Path) -> str:
    """What `gateway gate` says on standard error when it ends with 2 instead of serving."""
    config = data_dir / "gateway.toml"
    config.write_text(f"""
        gateway.id = "north"
        gateway.data_dir = "{data_dir}"
        lane = [{{ name = "north", relay = {{ driver = "memory" }} }}]
        point = [{{ name = "in", lane = "north", from = "outside", to = "hall" }}]
        reader = [{{ name = "scanner", point = "in", driver = "stdin" }}]
    """)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "gate", "--config", config],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr
