"""The prepared process that gates are forked from."""

from __future__ import annotations

from tests.e2e.conftest import zygote

__all__ = ["zygote"]
