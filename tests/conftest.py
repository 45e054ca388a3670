"""Settings for the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples at every run, so that what is green stays green until the code changes. New ones are
# looked for with `make explore`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
