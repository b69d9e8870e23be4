"""What every test may ask for: a RabbitMQ, a MariaDB."""

from typing import Final

import pytest

pytest_plugins = ["tests.services.fixture", "tests.faults.plugin"]

#: Folders whose tests wait long for processes and services. They begin while there is still
#: other work for the other processors; at the end one of them would keep everybody waiting.
_SLOW: Final = ("tests/stories/", "tests/documents/", "tests/faults/", "tests/contracts/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_SLOW))
