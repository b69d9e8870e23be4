"""That tests get their services in any house, and leave none behind."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services import compose, package, provider, rabbitmq
from tests.services.mariadb import Database, database_at, execute
from tests.services.process import Guarded, Unavailable, free_port
from tests.services.rabbitmq import CONTROL_VARIABLE, virtual_host_at

ROOT = Path(__file__).parents[2]

# --- what was started is stopped ----------------------------------------------------------------

_ASKER = """
import sys, signal
from pathlib import Path
from tests.services.process import Guarded
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a run in the background ignores it
folder = Path(sys.argv[1])
guarded = Guarded(
    ["sleep", "1000"], log=folder / "log", folder=folder, after=["touch", sys.argv[2]]
)
print(guarded.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_service_ends_with_whoever_started_it(tmp_path: Path, sign: signal.Signals) -> None:
    """A killed test run must not leave a broker, a port and a folder behind."""
    folder, after = tmp_path / "service", tmp_path / "after"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _ASKER, str(folder), str(after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as asker:
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        assert _runs(pid)

        asker.send_signal(sign)

        _eventually(lambda: not _runs(pid) and not folder.exists() and after.exists())


def test_a_stopped_service_keeps_its_folder(tmp_path: Path) -> None:
    """It is started again on what it had on disk."""
    script = "trap 'echo ended in good order; exit' TERM; echo up; while :; do sleep 0.1; done"
    log = tmp_path / "log"
    guarded = Guarded(["sh", "-c", script], log=log, folder=tmp_path)
    _eventually(lambda: "up" in log.read_text())

    guarded.stop()

    assert log.read_text().splitlines()[-1] == "ended in good order"
    assert not guarded.alive
    guarded.stop()
    guarded.kill()


def test_a_killed_service_takes_its_children_along(tmp_path: Path) -> None:
    child = tmp_path / "child"
    guarded = Guarded(["sh", "-c", f"sleep 1000 & echo $! > {child}; wait"], log=tmp_path / "log")
    _eventually(lambda: child.exists() and child.read_text().strip().isdigit())

    guarded.kill()

    assert not guarded.alive
    _eventually(lambda: not _runs(int(child.read_text())))


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no-such-program"):
        Guarded(["/no-such-program"], log=tmp_path / "log")


# --- the first way that works -------------------------------------------------------------------


def test_the_first_way_that_works_is_taken_and_no_other() -> None:
    def no_more() -> nullcontext[str]:
        raise AssertionError("a way was tried although another had worked")

    ways: provider.Ways[str] = {
        "broken": _unavailable,
        "working": lambda: nullcontext("a url"),
        "later": no_more,
    }

    with provider._or_no_service("RabbitMQ", "VARIABLE", ways) as url:
        assert url == "a url"


def test_without_any_way_all_that_was_tried_is_told() -> None:
    ways: provider.Ways[str] = {"one": _unavailable, "two": _unavailable}

    with (
        pytest.raises(provider.NoService) as told,
        provider._or_no_service("RabbitMQ", "DANE_TEST_AMQP_URL", ways),
    ):
        pass

    for word in ("RabbitMQ", "- one: not here", "- two: not here", "DANE_TEST_AMQP_URL"):
        assert word in str(told.value)


def test_what_goes_wrong_with_a_service_in_hand_is_not_taken_for_its_absence() -> None:
    ways: provider.Ways[str] = {"one": lambda: nullcontext("a url"), "two": _unavailable}

    with (
        pytest.raises(Unavailable, match="later"),
        provider._or_no_service("RabbitMQ", "VARIABLE", ways),
    ):
        raise Unavailable("it broke later")


def test_a_named_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names one wants that one, not another."""
    monkeypatch.setenv("DANE_TEST_AMQP_URL", f"amqp://me:x@127.0.0.1:{free_port()}/")
    monkeypatch.setenv("DANE_TEST_MYSQL_URL", f"mysql://me:x@127.0.0.1:{free_port()}/")

    with pytest.raises(provider.NoService, match="no RabbitMQ answers at"), provider.rabbitmq():
        pass
    with pytest.raises(provider.NoService, match="Can't connect"), provider.mariadb():
        pass


# --- virtual hosts and databases of our own -----------------------------------------------------


@pytest.mark.services
def test_a_virtual_host_is_made_with_a_named_rabbitmqctl(
    broker: rabbitmq.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONTROL_VARIABLE, shlex.join(broker.control_command))

    with virtual_host_at(broker.url) as virtual_host:
        name = urlsplit(virtual_host.url).path[1:]
        assert name in broker.control("list_vhosts").split()
        assert "dane\t.*\t.*\t.*" in broker.control("list_permissions", "-p", name)

    assert name not in broker.control("list_vhosts").split()


@pytest.mark.services
def test_a_virtual_host_is_made_over_the_management_api(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONTROL_VARIABLE, raising=False)
    with _management_api() as (base, calls):
        monkeypatch.setenv("DANE_TEST_AMQP_API", base)
        with virtual_host_at(amqp_url) as virtual_host:
            path = urlsplit(virtual_host.url).path

    user = urlsplit(amqp_url).username
    assert calls == [
        "GET /api/vhosts",
        f"PUT /api/vhosts{path}",
        f"PUT /api/permissions{path}/{user}",
        f"DELETE /api/vhosts{path}",
    ]


@pytest.mark.services
def test_a_broker_that_gives_no_virtual_host_is_told_with_what_is_missing(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONTROL_VARIABLE, raising=False)
    monkeypatch.setenv("DANE_TEST_AMQP_API", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(rabbitmq, "find_program", lambda *_: None)

    with pytest.raises(Unavailable, match=r"rabbitmq_management.*DANE_TEST_AMQP_CONTROL"):  # noqa: SIM117
        with virtual_host_at(amqp_url):
            pass


@pytest.mark.services
def test_a_database_is_gone_after_use(mysql_url: str) -> None:
    with database_at(mysql_url) as url:
        name = urlsplit(url).path[1:]
        execute(mysql_url, [f"CREATE TABLE {name}.t (a INT)", f"USE {name}"])

    with pytest.raises(Unavailable, match="Unknown database"):
        execute(mysql_url, [f"USE {name}"])


@pytest.mark.services
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tx_isolation", "READ-COMMITTED"),
        ("innodb_flush_log_at_trx_commit", "1"),
        ("character_set_database", "utf8mb4"),
    ],
)
def test_a_private_mariadb_is_set_as_dane_asks(
    database: Database, setting: str, value: str
) -> None:
    query = f"SELECT IF(@@GLOBAL.{setting} = '{value}', 1, (SELECT 1 UNION SELECT 2))"

    execute(database.url, [query])  # fails, more than one row, when it is not so


@pytest.mark.services
def test_a_private_mariadb_keeps_what_it_had_when_killed(database: Database) -> None:
    with database_at(database.url) as url:
        name = urlsplit(url).path[1:]
        execute(database.url, [f"CREATE TABLE {name}.t (a INT)", f"INSERT {name}.t VALUES (1)"])

        database.kill()
        with pytest.raises(Unavailable):
            execute(database.url, ["SELECT 1"])
        database.start()

        execute(database.url, [f"DELETE FROM {name}.t WHERE a = 1", f"DROP TABLE {name}.t"])


@pytest.mark.services
def test_a_command_runs_with_both_services(amqp_url: str, mysql_url: str) -> None:
    script = """if True:
        import os, sys
        print(os.environ["DANE_TEST_AMQP_URL"], os.environ["DANE_TEST_MYSQL_URL"])
        sys.exit(7)
    """
    servers = {"DANE_TEST_AMQP_URL": amqp_url, "DANE_TEST_MYSQL_URL": mysql_url}
    done = subprocess.run(
        [sys.executable, "-m", "tests.services", "run", "--", sys.executable, "-c", script],
        env={**os.environ, **servers},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 7, done.stderr
    amqp, mysql = done.stdout.split()
    assert urlsplit(amqp).netloc == urlsplit(amqp_url).netloc
    assert amqp != amqp_url
    assert urlsplit(mysql).netloc == urlsplit(mysql_url).netloc
    assert mysql != mysql_url


# --- ways that this machine may not have --------------------------------------------------------


def test_a_package_is_installed_without_its_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = tmp_path / "policy-rc.d", tmp_path / "seen"
    _fake_program(tmp_path, "apt-get", f'echo "$DEBIAN_FRONTEND $*" $({policy}; echo $?) >> {seen}')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(package, "_POLICY", policy)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    package.install("rabbitmq-server")

    assert seen.read_text().splitlines() == [
        "noninteractive update 101",
        "noninteractive install --yes --no-install-recommends rabbitmq-server 101",
    ]
    assert not policy.exists()


def test_a_package_cannot_be_installed_by_just_anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(Unavailable, match="needs root"):
        package.install("rabbitmq-server")


def test_compose_is_brought_up_with_a_port_and_a_password_of_ours_and_down_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, override = tmp_path / "seen", tmp_path / "override"
    script = f"""
        echo "$*" >> {seen}
        case "$*" in
        *" up "*) cp "$7" {override};;
        *" port "*) echo 127.0.0.1:49153;;
        esac
    """
    _fake_program(tmp_path, "docker", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with compose.rabbitmq() as virtual_host:
        address = urlsplit(virtual_host.url)

    assert (address.hostname, address.port, address.path) == ("127.0.0.1", 49153, "/dane-test")
    settings = json.loads(override.read_text())["services"]["rabbitmq"]
    assert settings["environment"]["RABBITMQ_DEFAULT_PASS"] == address.password
    assert settings["ports"][0]["host_ip"] == "127.0.0.1"
    verbs = [line.split(" ", 7)[7] for line in seen.read_text().splitlines()]
    assert verbs == [
        "version",
        "up --detach --wait --no-deps rabbitmq",
        "port rabbitmq 5672",
        "down --volumes --timeout 5",
    ]
    assert virtual_host.control is not None
    assert virtual_host.control[-4:] == ["--no-TTY", "rabbitmq", "rabbitmqctl", "-q"]


def test_a_compose_that_does_not_come_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_program(tmp_path, "docker", "echo cannot connect to the docker daemon >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(Unavailable, match="cannot connect to the docker daemon"):  # noqa: SIM117
        with compose.mariadb():
            pass


@contextmanager
def _unavailable() -> Iterator[str]:
    raise Unavailable("not here")
    yield ""


@contextmanager
def _management_api() -> Iterator[tuple[str, list[str]]]:
    """RabbitMQ's management plugin, as far as it is asked; its address and what it was asked."""
    calls: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            assert self.headers["Authorization"].startswith("Basic ")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            calls.append(f"{self.command} {self.path}")
            self.send_response(204)
            self.end_headers()

        do_GET = do_PUT = do_DELETE = _answer  # noqa: N815 - named by http.server

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()
            serving.join()


def _fake_program(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)
