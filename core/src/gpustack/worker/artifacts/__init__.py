"""Fetches what engines run from, and proves that it works before anything relies on it.

InstallError      an engine cannot be installed; one line, the full output is in the log file it names
"""

from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.installer import ArtifactInstaller

__all__ = ["ArtifactInstaller", "InstallError"]
