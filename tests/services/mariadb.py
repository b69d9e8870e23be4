"""A private MariaDB for tests, and databases of our own on a foreign one."""

import asyncio
import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.services.process import (
    Guarded,
    Unavailable,
    find_program,
    free_port,
    new_folder,
    remove_folder,
    tail,
    wait_until,
)

_FOLDERS = (
    "/usr/sbin",
    "/usr/libexec",
    "/usr/local/opt/mariadb/bin",
    "/opt/homebrew/opt/mariadb/bin",
)
_START_SECONDS = 60.0


class Database:
    """A MariaDB that is ours alone: stop it, kill it, start it again.

    Listens on loopback only, in a folder of its own, with the settings DANE asks for. `url`, of
    a user who may do everything, names no database and stays the same. Every act waits until it
    is done.
    """

    def __init__(self) -> None:
        program = find_program(["mariadbd", "mysqld"], _FOLDERS)
        installer = find_program(["mariadb-install-db", "mysql_install_db"], ("/usr/bin",))
        if program is None or installer is None:
            raise Unavailable("mariadbd and mariadb-install-db are not installed")
        self._program = program
        self._folder = new_folder()
        self._log = self._folder / "mariadb.log"
        self._port = free_port()
        self._process: Guarded | None = None
        self._scratch.mkdir()
        password = secrets.token_hex(16)
        self.url = f"mysql+asyncmy://dane:{password}@127.0.0.1:{self._port}/"
        try:
            self._install(installer, password)
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def last_words(self) -> str:
        """The end of its log, for the message of a test in which it died by itself."""
        return tail(self._log, 60)

    def start(self) -> None:
        """Start it, with what it had on disk. Running already is fine."""
        if self.running:
            return
        self._process = Guarded([self._program, *self._options], log=self._log, folder=self._folder)
        wait_until(self._answers, self._process, seconds=_START_SECONDS, log=self._log)

    def stop(self) -> None:
        """Shut it down in good order."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it for good and remove its folder."""
        self.kill()
        remove_folder(self._folder)

    def _answers(self) -> bool:
        try:
            execute(self.url, ["SELECT 1"])
        except Unavailable:
            return False
        return True

    def _install(self, installer: str, password: str) -> None:
        (self._folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS 'dane'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL PRIVILEGES ON *.* TO 'dane'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        command = [installer, "--no-defaults", f"--datadir={self._data}", "--skip-test-db"]
        with self._log.open("ab") as output:
            done = subprocess.run(
                [*command, *_as_root()],
                env={**os.environ, "TMPDIR": str(self._scratch)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode:
            raise Unavailable(f"{installer} failed: {tail(self._log)}")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _scratch(self) -> Path:
        return self._folder / "tmp"

    @property
    def _options(self) -> list[str]:
        return [
            "--no-defaults",
            *_as_root(),
            f"--datadir={self._data}",
            # One that starts removes the temporary tables it finds there, be they another's.
            f"--tmpdir={self._scratch}",
            f"--socket={self._folder / 'socket'}",
            f"--pid-file={self._folder / 'pid'}",
            f"--init-file={self._folder / 'init.sql'}",
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--character-set-server=utf8mb4",
            "--transaction-isolation=READ-COMMITTED",
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-size=128M",
            "--innodb-log-file-size=64M",
            "--innodb-fast-shutdown=1",
            "--performance-schema=OFF",
            "--max-connections=200",
        ]


@contextlib.contextmanager
def database_at(url: str) -> Iterator[str]:
    """A database of our own at somebody's server; the URL of it, and gone afterwards.

    `url` is that of a user who may make databases; `?unix_socket=` is fine.
    """
    name = f"dane_test_{secrets.token_hex(6)}"
    execute(url, [f"CREATE DATABASE {name} CHARACTER SET utf8mb4"])
    parts = urlsplit(url)
    try:
        yield parts._replace(scheme="mysql+asyncmy", path=f"/{name}").geturl()
    finally:
        with contextlib.suppress(Unavailable):  # the server is gone, and its databases with it
            execute(url, [f"DROP DATABASE IF EXISTS {name}"])


def execute(url: str, statements: Sequence[str]) -> None:
    """Run statements at a server. Raises: Unavailable."""
    # In a thread, because some callers already have an event loop running.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, _execute(url, statements)).result()


async def _execute(url: str, statements: Sequence[str]) -> None:
    import asyncmy  # noqa: PLC0415 - of the extra `server`; only those who need MariaDB need it
    from asyncmy.errors import MySQLError  # noqa: PLC0415

    parts = urlsplit(url)
    options: dict[str, Any] = {
        "user": unquote(parts.username or "root"),
        "password": unquote(parts.password or ""),
        "host": parts.hostname or "127.0.0.1",
        "port": parts.port or 3306,
    }
    if sockets := parse_qs(parts.query).get("unix_socket"):
        options["unix_socket"] = sockets[0]
    try:
        connection = await asyncmy.connect(**options, connect_timeout=5, autocommit=True)
        async with connection, connection.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)
    except (MySQLError, OSError, RuntimeError) as fault:
        raise Unavailable(str(fault)) from fault


def root_url(socket: str | None = None) -> str:
    """Root with an empty password on this machine, over TCP or a socket."""
    tail = f"?unix_socket={quote(socket)}" if socket else ""
    return f"mysql+asyncmy://root@127.0.0.1:3306/{tail}"


def _as_root() -> list[str]:
    return ["--user=root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
