"""Fixtures that any test may use live in ``support``; they are made on first use only."""

pytest_plugins = ["support.engine", "support.postgres", "support.tiny_models"]
