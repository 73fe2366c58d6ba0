"""Which instances of a model are missed least."""

from __future__ import annotations

from collections.abc import Sequence

from gpustack.schemas import InstanceState, ModelInstancePublic
from gpustack.server.reconcile.state import State

_S = InstanceState

#: Who goes first when there are too many: the least useful. States not named come in between.
_HARM = {_S.ERROR: 0, _S.UNREACHABLE: 1, _S.PENDING: 2, _S.ANALYZING: 2, _S.SCHEDULED: 3, _S.RUNNING: 5}


def least_harmful_first(state: State, mine: Sequence[ModelInstancePublic]) -> list[ModelInstancePublic]:
    """Return those of one model in the order in which they may go.

    First what does not run, then what is out of date, what has the fewest requests, what shares its worker with most
    others, and what is newer.
    """

    def harm(each: ModelInstancePublic) -> tuple[bool, bool, int]:
        return each.state is _S.RUNNING, not state.outdated(each), _HARM.get(each.state, 4)

    # Going through those that are kept first, each is told how many of its worker are kept before it.
    others: dict[int, int] = {}
    crowd: dict[int, int] = {}
    for each in sorted(mine, key=lambda each: (*(-int(part) for part in harm(each)), each.id)):
        worker = each.worker_id or 0
        crowd[each.id] = others[worker] = others.get(worker, 0) + 1
    busy = state.scaling.requests_at
    return sorted(mine, key=lambda each: (*harm(each), busy(each.id), -crowd[each.id], -each.id))
