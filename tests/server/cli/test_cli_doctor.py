"""`dane doctor` and `dane db retention`, beside a server, without one, and with nothing there."""

import asyncio
import socket
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from dane_core.exchange.amqp import connect
from dane_core.message import Envelope
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE
from dane_server.storage import migrate
from dane_server.storage.engine import Store, open_store
from dane_server.storage.functions import later
from dane_server.storage.tables import jobs
from tests.core.cli.called import Dane, Said
from tests.server.cli.process import running
from tests.server.ledger import Ledger
from tests.services.mariadb import database_at

NOW: Final = ("--between", 0)
MISCOUNTED: Final = sa.update(jobs).values(active=2)


def checks_of(said: Said) -> list[str]:
    return [one["check"] for one in said.json["divergences"]]


async def _with_a_job(store: Store, statement: Any) -> None:
    ledger = Ledger.of(store)
    await ledger.submit("NOBODY")

    async def unit(connection: Any) -> None:
        await connection.execute(statement)

    await store.write(unit)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store where the default configuration finds it, with a job whose counters are wrong."""
    file = tmp_path / "dane-data" / "dane.sqlite"

    async def make() -> None:
        async with open_store(f"sqlite+aiosqlite:///{file}") as store:
            await migrate.upgrade(store)
            await _with_a_job(store, MISCOUNTED)

    asyncio.run(make())
    return file


@pytest.mark.usefixtures("file")
def test_what_is_found_is_told_and_repaired_when_asked_for(dane: Dane) -> None:
    told = dane("doctor", *NOW)
    fixed = dane("doctor", "--fix", "--json", *NOW)

    assert told.code == 1
    assert "counters: job 1 has miscounted its tasks: active is 2 and should be 1" in told.out
    assert "to be done: count the job anew" in told.out
    assert "there is no broker" in told.out
    found = {one["check"]: one for one in fixed.json["divergences"]}
    assert found["counters"]["repaired"]
    assert found["counters"]["ids"] == [1]
    # Nobody but a person can start a worker.
    assert [check for check, one in found.items() if not one["repaired"]] == ["unserved"]
    assert fixed.code == 1


def test_all_agrees_in_a_store_that_is_at_rest(dane: Dane) -> None:
    dane("db", "upgrade")

    said = dane("doctor", *NOW)

    assert said.code == 0
    assert "all agrees" in said.out


def test_tables_of_another_version_are_a_divergence(dane: Dane) -> None:
    said = dane("doctor", "--json", *NOW)

    assert said.code == 1
    assert checks_of(said) == ["schema"]


def test_a_server_that_holds_the_file_is_asked_for_its_own_checks(
    dane: Dane, tmp_path: Path, file: Path
) -> None:
    """A second process on the file is refused; the server goes its rounds by itself."""
    (tmp_path / "config.yml").write_text("RUNNER: {CHECK: 0.2, SWEEP: 0.2}\nLOGGING: {LEVEL: INFO}")
    with running(tmp_path, "serve", "--port", 0, "--json") as server:
        url = server.line()["url"]
        (tmp_path / "config.yml").write_text(f"DANE: {{API_URL: {url}}}")
        said = dane("doctor", "--json")
        while "unserved" not in checks_of(said):
            said = dane("doctor", "--json")
        page = dane("doctor")
        server.end()
        (tmp_path / "config.yml").write_text("DANE: {PORT: 1}")

    assert file.is_file()
    assert said.code == 1
    assert "its last round ended at 20" in said.json["notes"][-1]
    assert "a running server uses this store" in page.out
    assert dane("doctor", *NOW).code == 1


def test_a_server_that_cannot_be_asked_either_is_exit_code_3(
    dane: Dane, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "config.yml").write_text("DANE: {PORT: 1}")

    async def beside() -> Any:
        async with open_store(f"sqlite+aiosqlite:///{file}"):
            return await asyncio.to_thread(dane, "doctor")

    said = asyncio.run(beside())

    assert said.code == 3
    assert "does not answer" in said.err


def test_without_a_broker_the_store_is_examined_all_the_same(
    dane: Dane, tmp_path: Path, file: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        (tmp_path / "config.yml").write_text(
            f"RABBITMQ: {{HOST: 127.0.0.1, PORT: {port}}}\nSTORE: {{URL: 'sqlite:///{file}'}}"
        )

        said = dane("doctor", "--json", *NOW)

    assert said.code == 3
    assert len(said.json["unreachable"]) == 1
    assert "counters" in checks_of(said)


@pytest.mark.services
def test_without_a_database_the_broker_is_examined_all_the_same(
    dane: Dane, tmp_path: Path, amqp_url: str
) -> None:
    _put(amqp_url, Envelope(type="answer", body=b"rubbish"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        (tmp_path / "config.yml").write_text(
            f"MARIADB: {{HOST: 127.0.0.1, PORT: {port}}}\nEXCHANGE: {{URL: '{amqp_url}'}}"
        )

        said = dane("doctor", "--json", *NOW)

    assert said.code == 3
    assert "database does not answer" in said.json["unreachable"][0]
    assert checks_of(said) == ["dead"]


@pytest.mark.services
def test_beside_servers_on_a_broker_and_a_database(
    dane: Dane, tmp_path: Path, amqp_url: str, mysql_url: str
) -> None:
    """As an operator calls it; parked reports that cannot be read are left for a person."""

    _put(amqp_url, Envelope(type="answer", body=b"rubbish"))
    with database_at(mysql_url) as url:

        async def make() -> None:
            async with open_store(url) as store:
                await migrate.upgrade(store)
                await _with_a_job(store, MISCOUNTED)

        asyncio.run(make())
        (tmp_path / "config.yml").write_text(
            f"STORE: {{URL: '{url}'}}\nEXCHANGE: {{URL: '{amqp_url}'}}"
        )

        said = dane("doctor", "--fix", "--replay-dead", "--json", *NOW)

    found = {one["check"]: one["repaired"] for one in said.json["divergences"]}
    assert found == {"counters": True, "unserved": False, "dead": False}
    assert "cannot be read" in said.json["replayed"][0]
    assert said.code == 1


def _put(amqp_url: str, envelope: Envelope) -> None:
    """Leave one message in the queue of what cannot be read, and none of other tests anywhere."""

    async def put() -> None:
        async with connect(amqp_url) as exchange:
            await exchange.delete_queue(RESPONSE_QUEUE)
            await exchange.delete_queue(DEAD_QUEUE)
            await exchange.declare_queue(DEAD_QUEUE)
            await exchange.send(DEAD_QUEUE, [envelope])

    asyncio.run(put())


def test_what_retention_would_remove_can_be_seen_first(dane: Dane, file: Path) -> None:
    async def end() -> None:
        async with open_store(f"sqlite+aiosqlite:///{file}") as store:
            over = sa.update(jobs).values(active=0, cancelled=1, finished_at=later(-100 * 86_400))

            async def unit(connection: Any) -> None:
                await connection.execute(sa.text("UPDATE task SET state = 'cancelled'"))
                await connection.execute(over)

            await store.write(unit)

    asyncio.run(end())

    would = dane("db", "retention", "--dry-run", "--json")
    went = dane("db", "retention")
    again = dane("db", "retention")

    assert would.json["jobs"] == 1
    assert "jobs  1" in went.out
    assert "nothing is old enough" in again.out
