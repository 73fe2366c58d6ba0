"""Pages of a list: search, order and numbers, all checked before the database sees them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from piccolo.query.methods.select import Select
from piccolo.querystring import QueryString
from piccolo.table import Table

from gpustack.kit.errors import InvalidInput
from gpustack.schemas.common import Pagination

MAX_PER_PAGE = 1000


def check_page(page: int, per_page: int) -> None:
    """InvalidInput unless the numbers make sense; ``page`` -1 is everything."""
    if page != -1 and not 1 <= page <= 1_000_000_000:
        raise InvalidInput(f"page is {page}; pages count from 1, and -1 is everything on one page")
    if not 1 <= per_page <= MAX_PER_PAGE:
        raise InvalidInput(f"perPage is {per_page}; it is 1 to {MAX_PER_PAGE} (page=-1 gives everything)")


def pagination(page: int, per_page: int, total: int) -> Pagination:
    """Describe the page."""
    if page == -1:
        return Pagination(page=1, perPage=0, total=total, totalPage=1)
    return Pagination(page=page, perPage=per_page, total=total, totalPage=-(-total // per_page))


def order(table: type[Table], sort_by: str | None, allowed: Collection[str]) -> list[tuple[Any, bool]]:
    """Return ``(column, ascending)`` for ``"name,-created_at"``; ``id`` comes last, so that pages never overlap."""
    columns: dict[str, bool] = {}
    for item in (sort_by or "").split(","):
        name = item.strip()
        if not name:
            continue
        ascending = not name.startswith("-")
        name = name.removeprefix("-")
        if name not in allowed:
            raise InvalidInput(
                f"cannot sort by {name!r}; these can be sorted by: {', '.join(sorted(allowed))}"
            )
        columns.setdefault(name, ascending)
    columns.setdefault("id", True)
    return [(getattr(table, name), ascending) for name, ascending in columns.items()]


def containing(column: str, text: str) -> QueryString:
    """Return the condition that ``column`` contains ``text``, whatever its case and without wildcards."""
    # Written by hand: ILIKE is PostgreSQL's alone.
    escaped = text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return QueryString(f"LOWER({column}) LIKE LOWER({{}}) ESCAPE '!'", f"%{escaped}%")


def limited(query: Select[Any], page: int, per_page: int) -> Select[Any]:
    """Cut the query to the page."""
    if page == -1:
        return query
    return query.limit(per_page).offset((page - 1) * per_page) if page > 1 else query.limit(per_page)
