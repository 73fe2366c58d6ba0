"""What a gateway has to do, told as it changes: who hears it knows at any time how much that is."""

from __future__ import annotations

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.table.wire import Load


class LoadTeller:
    """Looks at one gateway's admission and chooser, and says what is otherwise than it said last."""

    def __init__(self, admission: Admission, chooser: Chooser) -> None:
        self._admission = admission
        self._chooser = chooser
        self._routes: dict[str, tuple[int, int, int]] = {}
        self._instances: dict[int, int] = {}

    def begin(self) -> None:
        """Tell all with the next one: somebody else listens now."""
        self._routes, self._instances = {}, {}

    def news(self) -> Load | None:
        """Return what has changed; None when nothing has."""
        routes, instances = self._admission.load(), self._chooser.load()
        changed = {name: now for name, now in routes.items() if self._routes.get(name) != now}
        # A route that is gone has nothing to do.
        changed |= {name: (0, 0, then[2]) for name, then in self._routes.items() if name not in routes}
        busy = {number: now for number, now in instances.items() if self._instances.get(number, 0) != now}
        busy |= {number: 0 for number, then in self._instances.items() if then and number not in instances}
        self._routes, self._instances = routes, instances
        return Load(changed, busy) if changed or busy else None

    def held(self) -> list[str]:
        """Return the routes that somebody waits for and that are to be woken."""
        return self._admission.held()
