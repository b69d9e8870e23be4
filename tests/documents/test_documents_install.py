"""An operator who types what docs/operators.md says has a DANE that works."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.documents.blocks import OPERATORS, ROOT, block, blocks, commands
from tests.services.mariadb import Database, execute
from tests.services.rabbitmq import Broker
from tests.stories.programs import finished, running

#: Blocks that need a machine of their own: packages, systemd, containers. What they name is
#: looked at below; compose.yaml is loaded by another test, but no container is started.
_OF_A_MACHINE = ("apt-get", "python3 -m venv", "useradd", "cp config/env.example", "[Unit]")


def test_every_block_of_the_operators_page_is_tried_or_said_not_to_be() -> None:
    """A new block needs a test first."""
    tried = ("rabbitmqctl add_vhost", "DANE_HOME=", "set -a; .")

    for one in blocks(OPERATORS):
        if one.language in ("sh", "ini"):
            assert one.first_line.startswith((*tried, *_OF_A_MACHINE)), one.first_line


def test_files_that_the_operators_page_copies_are_there() -> None:
    copied = [
        words[-2]
        for one in blocks(OPERATORS)
        if one.language == "sh"
        for words in commands(one.text.replace("&&", "\n"))
        if words[0] == "cp"
    ]

    assert len(copied) >= 4
    for source in copied:
        assert (ROOT / source).is_file(), source


@pytest.mark.services
async def test_what_the_operators_page_installs_works(
    broker: Broker, database: Database, tmp_path: Path
) -> None:
    """Its users may do what DANE needs: make tables and queues, bind, publish, consume."""
    _make_new(broker, database)
    _prepare_broker(broker)
    _prepare_database(database)
    _write_settings(broker, database, tmp_path)
    secrets = dict(_set_by(block(OPERATORS, "DANE_HOME=")))
    secrets["DANE_HOME"] = str(tmp_path)

    for words in commands(block(OPERATORS, "db upgrade")):
        if words[0].endswith("/dane"):
            code, out, err = await finished(*words[1:], folder=tmp_path, **secrets)
            assert code == 0, out + err
    serve = ("serve", "--port", "0", "--json")
    async with running(*serve, folder=tmp_path, **secrets) as server:
        url = (await server.facts())["url"]
        async with (
            running("worker", "FILESIZE", folder=tmp_path, **secrets),
            httpx.AsyncClient() as http,
        ):
            ready = await http.get(f"{url}/DANE/ready")
            code, out, err = await finished(
                *("run", "FILESIZE", str(ROOT / "README.md"), "--json"),
                folder=tmp_path,
                **secrets,
                DANE_DANE__API_URL=url,
            )

    assert ready.status_code == 200, ready.text
    assert code == 0, out + err
    assert json.loads(out)["response"]["FILESIZE"]["size"] == (ROOT / "README.md").stat().st_size


def _make_new(broker: Broker, database: Database) -> None:
    """As the packages install them: a guest at the broker, somebody who may do all at both."""
    broker.control("delete_user", "dane")
    broker.control("add_user", "guest", "guest")
    execute(
        database.url,
        [
            "CREATE USER admin@'127.0.0.1' IDENTIFIED BY 'admin'",
            "GRANT ALL ON *.* TO admin@'127.0.0.1' WITH GRANT OPTION",
        ],
    )
    execute(_as_admin(database), ["DROP USER dane@'127.0.0.1'"])


def _as_admin(database: Database) -> str:
    parts = urlsplit(database.url)
    return parts._replace(netloc=f"admin:admin@{parts.hostname}:{parts.port}").geturl()


def _prepare_broker(broker: Broker) -> None:
    for words in commands(block(OPERATORS, "rabbitmqctl add_vhost")):
        if words[0] == "rabbitmqctl":
            broker.control(*words[1:])


def _prepare_database(database: Database) -> None:
    [words] = [
        words
        for words in commands(block(OPERATORS, "rabbitmqctl add_vhost"))
        if words[0] == "mariadb"
    ]
    assert words[1] == "-e"
    statements = [part.strip() for part in words[2].split(";")]
    execute(_as_admin(database), [part for part in statements if part])


def _write_settings(broker: Broker, database: Database, folder: Path) -> None:
    """config/server.yml, as the page copies it; only the ports are those of this run."""
    text = (ROOT / "config" / "server.yml").read_text()
    for usual, url in ((5672, broker.url), (3306, database.url)):
        text, changed = re.subn(rf"PORT: {usual}\b", f"PORT: {urlsplit(url).port}", text)
        assert changed == 1
    (folder / "config.yml").write_text(text)


def _set_by(shell: str) -> Sequence[tuple[str, str]]:
    pairs = [word.partition("=") for word in shlex.split(shell)]
    return [(name, value) for name, _, value in pairs]
