"""Knows which queues there are, as far as publishing has shown, and tells operators of it once."""

import logging
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from dane_core.exchange.base import Fate
from dane_core.routing import task_key_of
from dane_server.storage.view import Claim

logger = logging.getLogger(__name__)

#: Routing keys without a queue that are kept: they are made of what clients write.
_MOST: Final = 10_000


class Bindings:
    """Where there was no queue, and which were full, when something was published there last."""

    def __init__(self) -> None:
        self.unbound: frozenset[str] = frozenset()  # routing keys
        self._without_worker: set[str] = set()
        self._full: set[str] = set()

    def probes(self, claims: Sequence[Claim]) -> Mapping[str, Claim]:
        """The first claim of each routing key that had no queue: it shows whether there is one."""
        unbound = [claim for claim in claims if claim.routing_key in self.unbound]
        return {claim.routing_key: claim for claim in reversed(unbound)}

    def forget(self, keys: Collection[str]) -> None:
        """Queues were bound for these keys: that there was none is no longer known."""
        self.unbound = frozenset(one for one in self.unbound if task_key_of(one) not in keys)

    def note(
        self, by_fate: Mapping[Fate, Sequence[Claim]], *, just_bound: Collection[str] = ()
    ) -> AbstractSet[str]:
        """Heed what became of messages; returns the keys that have a queue, and had none before.

        Keys that were just bound are not missed.
        """
        routed, unroutable = by_fate[Fate.ROUTED], by_fate[Fate.UNROUTABLE]
        refused = by_fate[Fate.REFUSED]
        found = self._note_unbound(unroutable, [*routed, *refused])
        keys = {claim.key for claim in routed}
        missed = {claim.key for claim in unroutable}.difference(just_bound)
        self._note_missing_workers(missed, keys)
        self._note_full_queues({claim.key for claim in refused}, keys)
        return found

    def _note_unbound(
        self, unroutable: Sequence[Claim], bound: Sequence[Claim]
    ) -> AbstractSet[str]:
        missing = {claim.routing_key for claim in unroutable}
        found = {claim.routing_key for claim in bound} & self.unbound
        if len(self.unbound) > _MOST:
            self.unbound = frozenset()
        if found or not missing <= self.unbound:
            self.unbound = (self.unbound | missing) - found
        return {task_key_of(address) for address in found}

    def _note_missing_workers(self, unroutable: set[str], routed: set[str]) -> None:
        """Log what an operator should know, once, and not with every probe."""
        for key in sorted(unroutable - self._without_worker):
            logger.warning("no queue is bound to %s: its tasks wait for a worker", key)
        for key in sorted(routed & self._without_worker - unroutable):
            logger.info("a queue is bound to %s again", key)
        self._without_worker = (self._without_worker | unroutable) - (routed - unroutable)

    def _note_full_queues(self, refused: set[str], routed: set[str]) -> None:
        """Log once per key; the leases of what was refused are the pause until the next try."""
        for key in sorted(refused - self._full):
            logger.warning("the queue of %s takes no more: its tasks are sent again later", key)
        for key in sorted(self._full & routed - refused):
            logger.info("the queue of %s takes tasks again", key)
        self._full = (self._full - routed) | refused
