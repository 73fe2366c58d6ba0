"""The catalog: models that can be deployed by their name."""

from __future__ import annotations

from gpustack.schemas.common import Output
from gpustack.schemas.models import Source


class ModelSetPublic(Output):
    """One entry of the catalog."""

    #: Its place in the list, counted from 1.
    id: int
    #: What ``gpustack deploy`` takes.
    name: str
    title: str
    #: What it is and what it is not, in a sentence.
    description: str
    home: str = ""
    categories: list[str] = []
    #: Longest context, where it is known, as in ``context/2K``.
    capabilities: list[str] = []
    licenses: list[str] = []
    #: Weights in ``size_unit``: M are millions, B thousands of millions; 0 is unknown.
    size: float = 0
    size_unit: str = ""


class ModelSpecPublic(Output):
    """A way to deploy an entry: the fields of a model that are set for it."""

    #: The kind of use it is meant for.
    mode: str = "standard"
    source: Source
    bundled_name: str = ""
    categories: list[str] = []
