"""`dane dev`, `dane serve`, `dane worker`: what they refuse, and a service that works."""

import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from dane_server.bind import listen
from dane_server.cli import serve_main
from tests.core.cli.called import Dane
from tests.server.cli.process import running

WORKER = """
from dane_core import TaskContext, Worker

class Shout(Worker):
    key = "SHOUT"
    async def work(self, task: TaskContext) -> dict:
        return {"said": task.args.get("words", "nothing").upper()}
"""


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
@pytest.mark.parametrize("how", ["option", "environment", "file"])
def test_an_open_address_is_refused_however_it_is_given(
    dane: Dane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, how: str
) -> None:
    options = []
    if how == "option":
        options = ["--host", host]
    elif how == "environment":
        monkeypatch.setenv("DANE_DANE__HOST", host)
    else:
        (tmp_path / "config.yml").write_text(f"DANE: {{HOST: '{host}'}}")

    said = dane("serve", *options)

    assert said.code == 78
    assert f"refusing to listen on {host}" in said.err
    assert "DANE.HOST" in said.err
    assert not (tmp_path / "dane-data").exists()


def test_dev_refuses_an_open_address_too(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    (tmp_path / "config.yml").write_text("DANE: {HOST: 0.0.0.0}")

    assert dane("dev", "shout.py").code == 78


@pytest.mark.parametrize("verb", ["serve", "dev"])
def test_a_busy_port_is_explained(dane: Dane, tmp_path: Path, verb: str) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]

        said = dane(verb, *(["shout.py"] if verb == "dev" else []), "--port", port)

    assert said.code == 78
    assert f"port {port} is in use" in said.err


@pytest.mark.parametrize("role", ["api", "runner"])
def test_a_part_alone_needs_a_broker_and_a_database(dane: Dane, role: str) -> None:
    """In one process's memory it would meet nobody."""
    said = dane("serve", "--role", role)

    assert said.code == 78
    assert "EXCHANGE.URL" in said.err
    assert "STORE.URL" in said.err


@pytest.mark.parametrize("verb", ["serve", "dev"])
def test_a_database_for_several_servers_needs_a_broker(
    dane: Dane, tmp_path: Path, verb: str
) -> None:
    """Two with exchanges in memory would take back each other's tasks for ever."""
    (tmp_path / "shout.py").write_text(WORKER)
    (tmp_path / "config.yml").write_text("MARIADB: {HOST: 127.0.0.1, PASSWORD: secret}")

    said = dane(verb, *(["shout.py"] if verb == "dev" else []), "--port", 0)

    assert said.code == 78
    assert "EXCHANGE.URL: a MariaDB may have several servers" in said.err
    assert "secret" not in said.err


def test_dane_server_of_0_1_is_dane_serve(
    dane: Dane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del dane
    monkeypatch.setattr("sys.argv", ["dane-server", "--host", "0.0.0.0"])

    with pytest.raises(SystemExit) as ended:
        serve_main()

    assert ended.value.code == 78
    assert "refusing to listen" in capsys.readouterr().err


def test_a_worker_alone_needs_a_broker(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(WORKER)

    said = dane("worker", "shout.py")

    assert said.code == 78
    assert "a worker needs the address of the broker" in said.err


def test_a_broker_that_does_not_answer_is_exit_code_3(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        (tmp_path / "config.yml").write_text(f"RABBITMQ: {{HOST: 127.0.0.1, PORT: {port}}}")

        said = dane("worker", "shout.py")

    assert said.code == 3
    assert said.err.startswith("dane: ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["worker", "dev"])
def test_a_target_that_is_not_there_is_wrong_usage(dane: Dane, verb: str) -> None:
    said = dane(verb, "shoot.py")

    assert said.code == 2
    assert "there is no file" in said.err


# --- a service that works ------------------------------------------------------------------------


def test_dev_serves_a_worker_in_a_file_until_it_is_told_to_stop(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    with running(tmp_path, "dev", "shout.py", "--port", 0, "--json") as dev:
        facts = dev.line()
        url = facts["url"]

        answer = dane("run", "SHOUT", "shout.py", "-a", "words=hello", "--server", url)
        jobs = dane("job", "list", "--json", "--server", url)
        keys = dane("workers", "--json", "--server", url)
        task = dane("task", "show", 1, "--json", "--server", url)
        config_free = dane("job", "show", 1, "--server", url)
        code, err = dev.end()

    assert facts["keys"] == ["SHOUT"]
    assert facts["exchange"] == "memory://"
    assert answer.json == {"said": "HELLO"}
    assert [job["status"] for job in jobs.json] == ["succeeded"]
    assert [key["task_key"] for key in keys.json] == ["SHOUT"]
    assert task.json["response"] == {"said": "HELLO"}
    assert "✔ SHOUT" in config_free.out
    assert code == 0
    assert "Traceback" not in err


def test_jobs_are_still_there_after_a_restart(dane: Dane, tmp_path: Path) -> None:
    """The data folder is the default one, in the folder where the server was started."""
    (tmp_path / "shout.py").write_text(WORKER)
    spec = '{"source_url": "x", "source_id": "x", "tasks": "NOBODY"}'
    with running(tmp_path, "dev", "shout.py", "--port", 0, "--json") as dev:
        dane("submit", spec, "--server", dev.line()["url"])
        dev.end(signal.SIGINT)

    with running(tmp_path, "dev", "shout.py", "--port", 0, "--json") as dev:
        jobs = dane("job", "list", "--json", "--server", dev.line()["url"])

    assert [job["source_id"] for job in jobs.json] == ["x"]
    assert (tmp_path / "dane-data" / "dane.sqlite").is_file()


def test_a_second_server_on_one_file_is_refused_until_the_first_is_dead(
    dane: Dane, tmp_path: Path
) -> None:
    """The lock ends with its process, however that ends."""
    (tmp_path / "shout.py").write_text(WORKER)
    command = ("dev", "shout.py", "--port", 0, "--json")
    with running(tmp_path, *command) as dev:
        dev.line()

        said = dane("serve", "--port", 0)
        dev.end(signal.SIGKILL)
    with running(tmp_path, *command) as following:
        assert "url" in following.line()

    assert said.code == 78
    assert "another DANE server uses" in said.err


@pytest.mark.services
async def test_a_worker_over_rabbitmq_says_how_it_is_and_drains(
    tmp_path: Path, amqp_url: str
) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with running(
        tmp_path,
        *("worker", "shout.py", "--slots", 3, "--health-port", port, "--json"),
        DANE_EXCHANGE__URL=amqp_url,
    ) as worker:
        facts = worker.line()
        transport = httpx.AsyncHTTPTransport(retries=20)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            health = await client.get(f"http://127.0.0.1:{port}/health")
        code, err = worker.end()

    assert facts["keys"] == ["SHOUT"]
    assert facts["slots"] == 3
    assert health.status_code == 200
    assert health.json()["worker"] == facts["worker"]
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.services
def test_a_health_port_that_is_taken_is_a_wrong_setting(tmp_path: Path, amqp_url: str) -> None:
    (tmp_path / "shout.py").write_text(WORKER)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with running(
            tmp_path,
            *("worker", "shout.py", "--health-port", port, "--json"),
            DANE_EXCHANGE__URL=amqp_url,
        ) as worker:
            worker.line()
            code, err = worker.wait()

    assert code == 78
    assert re.search(rf"WORKER\.HEALTH_PORT: port {port} .*--health-port", err)
