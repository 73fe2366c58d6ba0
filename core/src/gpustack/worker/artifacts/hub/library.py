"""What ``huggingface_hub`` does for us: small files, transfers by Xet, and the links that make a snapshot. Blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gpustack.kit.errors import Unavailable
from gpustack.worker.artifacts.hub.api import Listing, RepoFile
from gpustack.worker.artifacts.hub.config import HubConfig
from gpustack.worker.artifacts.hub.errors import refusal
from gpustack.worker.artifacts.hub.transfer import Meter
from gpustack.worker.environment import clean_environment


def library_environment(config: HubConfig, ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a process that uses the library: it reads them once, when it is imported.

    The token is not among them, and nothing of the user's own settings of the library is read.
    """
    env = clean_environment((), ours)
    root, seconds = str(config.cache_dir), str(max(1, round(config.stall)))
    env |= {
        "HF_HOME": root,
        "HF_HUB_CACHE": root,
        "HF_ENDPOINT": config.endpoint,
        "HF_HUB_DISABLE_XET": "0" if config.xet else "1",
        "HF_XET_HIGH_PERFORMANCE": "1" if config.fast else "0",
        "HF_HUB_ENABLE_HF_TRANSFER": "1" if config.fast else "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": seconds,
        "HF_HUB_ETAG_TIMEOUT": seconds,
        "HF_HUB_VERBOSITY": "error",
        **dict.fromkeys(
            (
                "HF_HUB_DISABLE_IMPLICIT_TOKEN",
                "HF_HUB_DISABLE_PROGRESS_BARS",
                "HF_HUB_DISABLE_SYMLINKS_WARNING",
                "HF_HUB_DISABLE_TELEMETRY",
                "HF_HUB_DISABLE_UPDATE_CHECK",
            ),
            "1",
        ),
        "PYTHONWARNINGS": "ignore",
    }
    host = urlsplit(config.endpoint).hostname or ""
    if re.match(r"^(localhost|127\.)", host):
        # A proxy of the company cannot reach a mirror on this very machine.
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = ",".join(filter(None, [(ours or os.environ).get(name, ""), host]))
    return env


class Library:
    """The library, for one commit of one repository."""

    def __init__(self, config: HubConfig, listing: Listing, meter: Meter) -> None:
        self._config = config
        self._listing = listing
        self._meter = meter

    def has_xet(self, file: RepoFile) -> bool:
        """Tell whether the library is to fetch this file by Xet."""
        if not self._config.xet:
            return False
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(
            self._listing.repo,
            file.path,
            revision=self._listing.commit,
            endpoint=self._config.endpoint,
        )
        try:
            about = get_hf_file_metadata(
                url,
                token=self._config.token or False,
                endpoint=self._config.endpoint,
                timeout=self._config.stall,
            )
        except Exception as error:
            raise self._trouble(error, file) from error
        return about.xet_file_data is not None

    def lay_out(self, file: RepoFile) -> None:
        """Put a file at its place in the snapshot; what is no blob yet is fetched."""
        from huggingface_hub import hf_hub_download

        more: dict[str, Any] = {"tqdm_class": _bar(self._meter, file)} if self._config.xet else {}
        try:
            hf_hub_download(
                self._listing.repo,
                file.path,
                revision=self._listing.commit,
                cache_dir=self._config.cache_dir,
                endpoint=self._config.endpoint,
                token=self._config.token or False,
                etag_timeout=self._config.stall,
                **more,
            )
        except Exception as error:
            raise self._trouble(error, file) from error

    def _trouble(self, error: Exception, file: RepoFile) -> Exception:
        """Return what an error of the library means: it comes with an answer, or without one from the network."""
        cause: BaseException | None = error
        while cause is not None:
            response = getattr(cause, "response", None)
            if response is not None:
                return refusal(
                    response,
                    endpoint=self._config.endpoint,
                    repo=self._listing.repo,
                    revision=self._listing.commit,
                    path=file.path,
                    token=bool(self._config.token),
                )
            cause = cause.__cause__
        if isinstance(error, OSError) and error.errno is not None:
            return error
        said = " ".join(str(error).split())[:200]
        return Unavailable(f"{self._config.endpoint}: {said}", retry_after=5.0)


def _bar(meter: Meter, file: RepoFile) -> type[Any]:
    """Return a progress bar that nobody sees and that feeds the meter."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Counts."""

        def update(self, n: float | None = 1) -> None:
            """Take in more bytes."""
            meter.put(file.path, min(file.size, meter.of(file.path) + int(n or 0)))

    return Bar
