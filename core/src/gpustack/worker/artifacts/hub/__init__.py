"""Models from the Hugging Face Hub: what a repository holds, what its headers say, and its files in the local cache.

    HubFiles        for the worker: facts without a download, and files fetched once for all who need them
    HubConfig       where the hub and the cache are
    DownloadError   files cannot be fetched; one line, ``again`` tells whether another attempt may succeed

The bytes are fetched by a process of its own (:mod:`.download`), into the layout that ``huggingface_hub`` uses, so
that other tools find them.
"""

from gpustack.worker.artifacts.hub.config import HubConfig
from gpustack.worker.artifacts.hub.errors import DownloadError
from gpustack.worker.artifacts.hub.files import HubFacts, HubFiles
from gpustack.worker.artifacts.hub.progress import Progress

__all__ = ["DownloadError", "HubConfig", "HubFacts", "HubFiles", "Progress"]
