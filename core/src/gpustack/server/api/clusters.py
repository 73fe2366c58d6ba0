"""``/v2/clusters``: groups of workers."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from gpustack.schemas import ClusterPublic, Page
from gpustack.server.api.listing import PageNumber, PerPage, Search, Selection, SortBy, listed
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.services import services

_TAGS = ["Clusters"]


@get("/clusters", tags=_TAGS)
async def list_clusters(
    request: Req,
    page: PageNumber = 1,
    per_page: PerPage = 100,
    search: Search = None,
    sort_by: SortBy = None,
) -> Response[Page[ClusterPublic]]:
    """List clusters."""
    return await listed(
        request,
        services(request).store.clusters,
        Selection(page=page, per_page=per_page, search=search, sort_by=sort_by),
        topic="clusters",
        filters={},
    )


@get("/clusters/{cluster_id:int}", tags=_TAGS)
async def get_cluster(request: Req, cluster_id: FromPath[int]) -> Response[ClusterPublic]:
    """Return one cluster."""
    return one(await services(request).store.clusters.get(cluster_id))


HANDLERS = [list_clusters, get_cluster]
