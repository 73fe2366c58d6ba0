"""The errors that end the program with one line."""

from __future__ import annotations


class CommandError(Exception):
    """The command line is not understood (exit status 2)."""


class StartError(Exception):
    """The server cannot start (exit status 1)."""
