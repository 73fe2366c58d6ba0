"""Clusters."""

from __future__ import annotations

from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, sql
from gpustack.db.tables import Cluster
from gpustack.kit.errors import NotFound
from gpustack.schemas.clusters import ClusterPublic
from gpustack.schemas.common import Page

_COUNTS = (
    "SELECT c.id, "
    "(SELECT COUNT(*) FROM workers w WHERE w.cluster_id = c.id) AS workers, "
    "(SELECT COUNT(*) FROM workers w WHERE w.cluster_id = c.id AND w.state = 'ready') AS ready_workers, "
    "(SELECT COALESCE(SUM(w.gpu_count), 0) FROM workers w WHERE w.cluster_id = c.id) AS gpus, "
    "(SELECT COUNT(*) FROM models m WHERE m.cluster_id = c.id) AS models "
    "FROM clusters c"
)


#: Inside the class, `list` is the method.
_Clusters = list[ClusterPublic]


class Clusters(Repository[ClusterPublic]):
    """Groups of workers, with counts of what is in them. They write no events."""

    table = Cluster
    public = ClusterPublic
    noun = "cluster"

    async def get(self, cluster_id: int) -> ClusterPublic:
        """Return one with its counts; NotFound when it does not exist."""
        return (await self._counted([await super().get(cluster_id)]))[0]

    async def default(self) -> ClusterPublic:
        """Return the default cluster with its counts."""
        found = await self._find(self._session, Cluster.is_default.eq(True))
        if not found:
            raise NotFound("there is no default cluster")
        return (await self._counted(found[:1]))[0]

    async def list(
        self, page: int = 1, per_page: int = 100, *, search: str | None = None, sort_by: str | None = None
    ) -> Page[ClusterPublic]:
        """Return one page with counts; ``page`` -1 is everything."""
        result = await self._page(page, per_page, search, sort_by, {})
        result.items = await self._counted(result.items)
        return result

    async def create(self, name: str, *, is_default: bool = False) -> ClusterPublic:
        """Add an empty cluster; Conflict when the name is taken."""
        taken = {"clusters_name_key": f"a cluster named {name!r} exists already; choose another name"}
        values = {
            "name": name,
            "description": "",
            "provider": "Docker",
            "is_default": is_default,
            "state": "ready",
        }
        with conflicts(taken):
            async with self._session.writing() as tx:
                return await self._insert(tx, values)

    async def _counted(self, clusters: _Clusters) -> _Clusters:
        counts = {row["id"]: dict(row) for row in await self._session.fetch(sql(_COUNTS))}
        return [cluster.model_copy(update=counts.get(cluster.id, {})) for cluster in clusters]
