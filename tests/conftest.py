"""Fixtures that any test may use live in ``support``; they are made on first use only."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["support.engine", "support.postgres", "support.tiny_models"]

# How long one example takes says nothing on a machine that does something else as well.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
