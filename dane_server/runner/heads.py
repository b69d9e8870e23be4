"""Keeps what every message of a job's tasks carries, for as long as they are being sent."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from dane_core.job import JobId
from dane_server.storage.reader import Reader
from dane_server.storage.view import Claim, JobHead

#: So many heads are kept, those that are no larger than so many characters.
_KEPT: Final = 500
_SMALL: Final = 10_000


class Heads:
    """The heads of the jobs that were sent from last. A head never changes, so none is stale."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: OrderedDict[JobId, JobHead] = OrderedDict()

    async def of(self, claims: Sequence[Claim]) -> Mapping[JobId, JobHead]:
        """The heads of the jobs of some claims; one just deleted may be missing."""
        wanted = {claim.job_id for claim in claims}
        found = {job_id: self._kept[job_id] for job_id in wanted & self._kept.keys()}
        found |= {claim.job_id: claim.head for claim in claims if claim.head is not None}
        if unknown := wanted - found.keys():
            found |= await self._reader.heads(unknown)
        for job_id, head in found.items():
            self._keep(job_id, head)
        return found

    def _keep(self, job_id: JobId, head: JobHead) -> None:
        if job_id in self._kept:
            self._kept.move_to_end(job_id)
        elif len(head.source_url) + len(orjson.dumps([head.metadata, head.shared])) <= _SMALL:
            self._kept[job_id] = head
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
