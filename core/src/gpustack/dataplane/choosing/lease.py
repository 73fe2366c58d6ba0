"""A request at the instance that was chosen for it, until it is over."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gpustack.dataplane.choosing.instance import Instance
from gpustack.dataplane.choosing.known import Known
from gpustack.dataplane.choosing.outstanding import TOKEN
from gpustack.dataplane.choosing.values import Outcome
from gpustack.plugin.routing import Target

#: What a token of the answer counts, in tokens of the prompt: engines read several times faster than they write.
ANSWER = 4


class Lease(msgspec.Struct, eq=False):
    """What one attempt holds. Whoever got it calls :meth:`done` exactly once; further calls change nothing.

    ``_prompt`` and ``_answer`` are tokens in flight, of the prompt's kind, as an instance's tally counts them.
    """

    target: Target
    instance: Instance
    #: The ejections of the instance when it was chosen.
    since: int
    _known: Known
    _prompt: int
    _answer: int
    _ended: Callable[[Lease, Outcome], None]
    #: Whether this request finds out if an ejected instance is well again.
    probe: bool = False
    _over: bool = False

    def first_byte(self) -> None:
        """Take note that the engine has read the prompt and began a good answer."""
        if self._prompt and not self._over:
            self.instance.tally.add(-self._prompt)
            self._prompt = 0
            if self.instance.ejected:
                self._ended(self, Outcome.OK)

    def progress(self, completion_tokens: int) -> None:
        """Correct what is expected of the answer, which has so many tokens now. Once in some thirty tokens is enough.

        An answer that is longer than most has, as far as anybody can tell, a quarter of the usual length before it.
        """
        if self._over:
            return
        usual = self._known.output
        left = int(max(usual - completion_tokens, usual / 4)) * ANSWER * TOKEN
        if left < self._answer:
            self.instance.tally.add(left - self._answer)
            self._answer = left

    def done(self, outcome: Outcome, completion_tokens: int = 0) -> None:
        """End it. ``completion_tokens`` is what the engine counted, 0 when it told nothing."""
        if self._over:
            return
        self._over = True
        instance = self.instance
        instance.tally.add(-(self._prompt + self._answer + 1))
        if outcome is Outcome.OK:
            if completion_tokens:
                self._known.answered(completion_tokens)
            if not (instance.failing or instance.ejected or self.probe):
                return
        self._ended(self, outcome)
