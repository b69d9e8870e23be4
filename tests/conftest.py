"""What every test may ask for: a RabbitMQ, a MariaDB."""

import os
from collections import defaultdict
from itertools import islice
from typing import Final

import pytest

pytest_plugins = ["tests.services.fixture", "tests.faults.plugin"]

#: Folders whose tests wait long for processes and services.
_SLOW: Final = ("tests/stories/", "tests/documents/", "tests/faults/", "tests/contracts/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin everywhere with what waits long: at the end it would keep everybody waiting.

    Each process of xdist is dealt one run of the list, and takes from the end of others' later.
    So each run begins with some of the slow files; a file stays whole, with its services.
    """
    hands = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    size = -(-len(items) // hands)
    files: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.nodeid.startswith(_SLOW):
            files[item.nodeid.partition("::")[0]].append(item)
    others = (item for item in items if not item.nodeid.startswith(_SLOW))
    ordered: list[pytest.Item] = []
    for hand in range(hands):
        slow = [item for file in sorted(files)[hand::hands] for item in files[file]]
        ordered += [*slow, *islice(others, max(size - len(slow), 0))]
    items[:] = [*ordered, *others]
