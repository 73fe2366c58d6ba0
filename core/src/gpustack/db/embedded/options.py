"""The settings PostgreSQL runs with, given on its command line so that every start has those of this version."""

from __future__ import annotations

from gpustack.kit.net import LOOPBACK


def options(major: int, port: int) -> list[str]:
    """Return the arguments for a small, quiet server of version ``major`` on ``port`` of this machine only."""
    settings = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        # No socket in the file system: its path may have 107 bytes at most, and a data directory may have more.
        "unix_socket_directories": "",
        # Server, worker's feed and command line together need a third of it.
        "max_connections": "60",
        "shared_buffers": "32MB",
        "huge_pages": "off",
        "jit": "off",
        "min_wal_size": "32MB",
        "max_wal_size": "256MB",
        # Nobody replicates from here, and no query here is worth a second process.
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_logical_replication_workers": "0",
        "max_parallel_workers": "0",
        "max_parallel_workers_per_gather": "0",
        # The log tells of trouble, and repeats neither statements nor values, which may be private.
        "log_line_prefix": "%m [%p] ",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    if major >= 18:
        settings["io_method"] = "sync"  # else three processes wait for reads that come from the page cache
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
