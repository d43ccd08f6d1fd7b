"""What every test shares: how Hypothesis searches."""

import os

from hypothesis import HealthCheck, settings

# The same examples each time where a failure must be repeatable, new ones on a workbench.
# No deadline: two busy cores say nothing about the code.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile(
    "workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "workbench")
