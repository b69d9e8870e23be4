"""Finds or starts the RabbitMQ and the MariaDB that tests need: the first way that works.

1. the one named in the environment, or one on the standard port with default credentials;
2. a private one, started from installed binaries in a temporary folder on free ports;
3. the same, after installing the package (root on Debian and Ubuntu);
4. the one of compose.yaml, with docker compose.

Always a virtual host or a database of this run's own, gone afterwards. What was started here is
stopped afterwards, however the run ends.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Final, TypeVar

from tests.services import compose
from tests.services.mariadb import Database, database_at, root_url
from tests.services.package import install
from tests.services.process import Unavailable
from tests.services.rabbitmq import Broker, VirtualHost, virtual_host_at

T = TypeVar("T")
Ways = Mapping[str, Callable[[], AbstractContextManager[T]]]

AMQP_VARIABLE: Final = "DANE_TEST_AMQP_URL"
MYSQL_VARIABLE: Final = "DANE_TEST_MYSQL_URL"


class NoService(Exception):
    """A service that tests need cannot be had here; says all that was tried."""

    def __init__(self, service: str, variable: str, tried: Unavailable) -> None:
        super().__init__(
            f"these tests need {service}, and none can be had here. Tried:\n{tried}\n"
            f"Install {service} (its daemon need not run), or start docker, or name a server "
            f"with an administrator's credentials in {variable}."
        )


@contextmanager
def rabbitmq() -> Iterator[VirtualHost]:
    """A virtual host of our own. Raises: NoService."""
    named = os.environ.get(AMQP_VARIABLE)
    ways: Ways[VirtualHost] = {
        "on the standard port": lambda: virtual_host_at("amqp://guest:guest@127.0.0.1:5672"),
        "a private one": _private_virtual_host,
        "compose.yaml": compose.rabbitmq,
    }
    if named:
        ways = {AMQP_VARIABLE: lambda: virtual_host_at(named)}
    with _or_no_service("RabbitMQ", AMQP_VARIABLE, ways) as virtual_host:
        yield virtual_host


@contextmanager
def mariadb() -> Iterator[str]:
    """The URL of a database of our own. Raises: NoService."""
    named = os.environ.get(MYSQL_VARIABLE)
    ways: Ways[str] = {
        "on the standard port": lambda: database_at(root_url()),
        "on the standard socket": lambda: database_at(root_url("/run/mysqld/mysqld.sock")),
        "a private one": _private_database_url,
        "compose.yaml": _composed_database_url,
    }
    if named:
        ways = {MYSQL_VARIABLE: lambda: database_at(named)}
    with _or_no_service("MariaDB", MYSQL_VARIABLE, ways) as url:
        yield url


@contextmanager
def private_broker() -> Iterator[Broker]:
    """A RabbitMQ to stop, kill and wipe. Raises: NoService."""
    with _or_no_service("RabbitMQ", AMQP_VARIABLE, _BROKERS) as broker:
        yield broker


@contextmanager
def private_database() -> Iterator[Database]:
    """A MariaDB to stop and kill. Raises: NoService."""
    with _or_no_service("MariaDB", MYSQL_VARIABLE, _DATABASES) as database:
        yield database


@contextmanager
def _private_virtual_host() -> Iterator[VirtualHost]:
    with _first(_BROKERS) as broker:
        yield VirtualHost(broker.url, broker.control_command)


@contextmanager
def _private_database_url() -> Iterator[str]:
    with _first(_DATABASES) as database, database_at(database.url) as url:
        yield url


@contextmanager
def _composed_database_url() -> Iterator[str]:
    with compose.mariadb() as server, database_at(server) as url:
        yield url


_BROKERS: Final[Ways[Broker]] = {
    "installed binaries": lambda: closing(Broker()),
    "a new package": lambda: closing(_installed("rabbitmq-server", Broker)),
}
_DATABASES: Final[Ways[Database]] = {
    "installed binaries": lambda: closing(Database()),
    "a new package": lambda: closing(_installed("mariadb-server", Database)),
}


def _installed(package: str, start: Callable[[], T]) -> T:
    install(package)
    return start()


@contextmanager
def _or_no_service(service: str, variable: str, ways: Ways[T]) -> Iterator[T]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(_first(ways))
        except Unavailable as tried:
            raise NoService(service, variable, tried) from None
        yield found


@contextmanager
def _first(ways: Ways[T]) -> Iterator[T]:
    """The first that can be entered. Raises: Unavailable, with what is wrong with each."""
    tried = []
    with ExitStack() as stack:
        for name, way in ways.items():
            try:
                found = stack.enter_context(way())
            except Unavailable as reason:
                tried.append(f"- {name}: {reason}")
            else:
                yield found
                return
    raise Unavailable("\n".join(tried))
