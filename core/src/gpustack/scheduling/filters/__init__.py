"""The filters that a worker passes before its memory is looked at, as one readable list."""

from gpustack.scheduling.filters.backend import accepted, backend_installed, platform_supported
from gpustack.scheduling.filters.files import files_ready
from gpustack.scheduling.filters.pipeline import Filter, Step, Verdicts, sift
from gpustack.scheduling.filters.worker import chosen, in_cluster, ready, selected

#: In order; who fails one is not asked the next. Cheap and telling ones come first.
PIPELINE: tuple[Filter, ...] = (
    Filter("are in the model's cluster", in_cluster),
    Filter("match the worker selector", selected),
    Filter("have a GPU that was chosen", chosen),
    Filter("are ready", ready),
    Filter("have the model's files", files_ready),
    Filter("have the backend", backend_installed),
    Filter("run on a platform the backend supports", platform_supported),
    Filter("have a backend that serves the model", accepted),
)

#: Those that tell which workers may hold the files at all, before anybody has looked.
CANDIDATES: tuple[Filter, ...] = PIPELINE[:4]

__all__ = ["CANDIDATES", "PIPELINE", "Filter", "Step", "Verdicts", "sift"]
