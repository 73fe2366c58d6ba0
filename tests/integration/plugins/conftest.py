from support.command_line import api, cli

__all__ = ["api", "cli"]
