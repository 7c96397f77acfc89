"""Settings for all tests: one thread, deterministic kernels, drawn examples that are the same on every run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
# A warning that torch gives once per process would fail whichever test comes first, instead of the one that earns it.
torch.set_warn_always(True)

# A failure must not depend on the day, and a shared machine must not turn a slow example into a failure.
settings.register_profile(
    "svdbench", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("svdbench")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global random state, whichever tests ran before it."""
    torch.manual_seed(0)
