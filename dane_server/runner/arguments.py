"""Checks the `args` of tasks against the schemas that their workers have announced."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dane_core.errors import BadSpec
from dane_server.graph import Graph
from dane_server.runner.schemas import Schemas
from dane_server.runner.together import Together
from dane_server.storage.reader import Reader

#: More tasks than this are looked at beside the event loop.
_MANY: Final = 200


class Arguments:
    """Knows the schemas of task keys; a key that no worker has announced takes anything."""

    def __init__(self, reader: Reader) -> None:
        self._announced = Together(reader.schemas)
        self._schemas = Schemas()

    async def of(self, keys: Iterable[str]) -> Mapping[str, Mapping[str, Any]]:
        """The schemas that there are for some keys, perhaps among others."""
        return await self._announced.of(keys)

    async def check(self, graphs: Sequence[Graph]) -> list[BadSpec | None]:
        """What is wrong with the tasks of some jobs: for each, all faults and their paths."""
        schemas = await self.of({task.key for graph in graphs for task in graph.tasks})
        if not schemas:
            return [None] * len(graphs)
        if sum(graph.total for graph in graphs) > _MANY:
            return await asyncio.to_thread(self._objections, graphs, schemas)
        return self._objections(graphs, schemas)

    def _objections(
        self, graphs: Sequence[Graph], schemas: Mapping[str, Mapping[str, Any]]
    ) -> list[BadSpec | None]:
        return [self._schemas.objection(graph, schemas) for graph in graphs]
