"""Fixtures for tests that need RabbitMQ or MariaDB. Without one they fail; they never skip."""

from collections.abc import Iterator

import pytest

from tests.services import provider
from tests.services.mariadb import Database
from tests.services.rabbitmq import Broker


@pytest.fixture(scope="session")
def amqp_url() -> Iterator[str]:
    """A virtual host of this run's own on a RabbitMQ."""
    with provider.rabbitmq() as virtual_host:
        yield virtual_host.url


@pytest.fixture(scope="session")
def mysql_url() -> Iterator[str]:
    """A database of this run's own on a MariaDB, as SQLAlchemy writes it."""
    with provider.mariadb() as url:
        yield url


@pytest.fixture(scope="module")
def _private_broker() -> Iterator[Broker]:
    with provider.private_broker() as broker:
        yield broker


@pytest.fixture
def broker(_private_broker: Broker) -> Broker:
    """A private RabbitMQ, running and new, to be stopped, killed and wiped."""
    if not _private_broker.running:
        _private_broker.start()
    return _private_broker


@pytest.fixture(scope="module")
def _private_database() -> Iterator[Database]:
    with provider.private_database() as database:
        yield database


@pytest.fixture
def database(_private_database: Database) -> Database:
    """A private MariaDB, running, to be stopped and killed."""
    if not _private_database.running:
        _private_database.start()
    return _private_database
