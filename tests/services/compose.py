"""RabbitMQ and MariaDB from compose.yaml, in a docker compose project of our own."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.services.process import Guarded, Unavailable, new_folder, remove_folder
from tests.services.rabbitmq import VirtualHost

_FILE: Final = Path(__file__).parents[2] / "compose.yaml"


@contextmanager
def rabbitmq() -> Iterator[VirtualHost]:
    """The virtual host that the broker was made with. Raises: Unavailable."""
    password = secrets.token_hex(16)
    settings = {
        "RABBITMQ_DEFAULT_USER": "dane",
        "RABBITMQ_DEFAULT_PASS": password,
        "RABBITMQ_DEFAULT_VHOST": "dane-test",
    }
    with _service("rabbitmq", 5672, settings) as (address, compose):
        url = f"amqp://dane:{password}@{address}/dane-test"
        yield VirtualHost(url, [*compose, "exec", "--no-TTY", "rabbitmq", "rabbitmqctl", "-q"])


@contextmanager
def mariadb() -> Iterator[str]:
    """The URL of a server, for its root. Raises: Unavailable."""
    password = secrets.token_hex(16)
    settings = {"MARIADB_ROOT_PASSWORD": password, "MARIADB_ROOT_HOST": "%"}
    with _service("mariadb", 3306, settings) as (address, _):
        yield f"mysql+asyncmy://root:{password}@{address}/"


@contextmanager
def _service(
    name: str, port: int, environment: Mapping[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """Start one service of the file, with a free port and credentials of ours.

    Its address, and the command that speaks of its project.
    """
    if shutil.which("docker") is None:
        raise Unavailable("docker is not installed")
    folder = new_folder()
    override = folder / "compose.override.json"
    override.write_text(json.dumps(_override(name, port, environment)))
    project = f"dane-test-{os.getpid()}-{name}"
    files = ["-f", str(_FILE), "-f", str(override)]
    compose = ["docker", "compose", "-p", project, *files]
    down = [*compose, "down", "--volumes", "--timeout", "5"]
    try:
        _run([*compose, "version"])
        # Waits for nothing but our end: then it takes the service down.
        keeper = Guarded(["sleep", "86400"], log=folder / "log", after=down, folder=folder)
        try:
            _run([*compose, "up", "--detach", "--wait", "--no-deps", name])
            yield _run([*compose, "port", name, str(port)]).strip(), compose
        finally:
            keeper.kill()
            _run(down)
    finally:
        remove_folder(folder)


def _override(name: str, port: int, environment: Mapping[str, str]) -> dict[str, Any]:
    # Compose adds this to what the file publishes; 0 stands for a free port.
    published = {"target": port, "published": "0", "host_ip": "127.0.0.1", "protocol": "tcp"}
    return {"services": {name: {"ports": [published], "environment": dict(environment)}}}


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr + done.stdout).strip().splitlines()[-1:]
        raise Unavailable(f"{' '.join(command[:2])}: {''.join(last) or done.returncode}")
    return done.stdout
