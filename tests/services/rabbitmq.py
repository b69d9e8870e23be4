"""A private RabbitMQ for tests, and virtual hosts of our own on a foreign one."""

import base64
import contextlib
import json
import os
import secrets
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

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

#: The scripts themselves: the wrapper that Debian puts on the PATH changes user and folder.
_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
_START_SECONDS = 90.0
#: How to run `rabbitmqctl` against the broker of DANE_TEST_AMQP_URL, as a shell would read it.
CONTROL_VARIABLE = "DANE_TEST_AMQP_CONTROL"


@dataclass(frozen=True)
class VirtualHost:
    """A virtual host of our own; and the `rabbitmqctl` that can make more, when it is known."""

    url: str
    control: Sequence[str] | None = None


class Broker:
    """A RabbitMQ that is ours alone: stop it, kill it, wipe it, start it again.

    Listens on loopback only, in a folder of its own, with a port mapper of its own. `url` stays
    the same through all of this. Every act waits until it is done.
    """

    def __init__(self) -> None:
        program = find_program(["rabbitmq-server"], _FOLDERS)
        mapper = find_program(["epmd"], ["/usr/lib/erlang/bin", "/usr/lib/erlang/erts-*/bin"])
        if program is None or mapper is None:
            raise Unavailable("rabbitmq-server is not installed")
        self._program = Path(program)
        self._folder = new_folder()
        self._log = self._folder / "rabbitmq.log"
        self._port, self._mapper_port, self._peer_port = free_port(), free_port(), free_port()
        self._node = f"dane-test-{os.getpid()}-{self._port}@localhost"
        password = secrets.token_hex(16)
        self.url = f"amqp://dane:{password}@127.0.0.1:{self._port}/dane-test"
        self._own_settings = (
            f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            "default_vhost = dane-test\n"
            "default_user = dane\n"
            f"default_pass = {password}\n"
            "disk_free_limit.absolute = 10MB\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
        )
        self._write_settings()
        self._process: Guarded | None = None
        self._mapper = Guarded(
            [mapper, "-port", str(self._mapper_port), "-address", "127.0.0.1"],
            log=self._folder / "epmd.log",
            env=self._environment,
            folder=self._folder,
        )
        try:
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
        self._process = Guarded(
            [str(self._program)], log=self._log, env=self._environment, folder=self._folder
        )
        wait_until(
            lambda: speaks_amqp("127.0.0.1", self._port),
            self._process,
            seconds=_START_SECONDS,
            log=self._log,
        )

    def stop(self) -> None:
        """Shut it down in good order."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it as kill -9 does. Durable queues and persistent messages are still on disk."""
        if self._process is not None:
            self._process.kill()

    def restart(self, *settings: str) -> None:
        """With these lines of rabbitmq.conf besides its own, until it is restarted again."""
        self.stop()
        self._write_settings(settings)
        self.start()

    def wipe(self) -> None:
        """Restart it as new: no exchanges, queues, bindings or messages."""
        self.kill()
        remove_folder(self._folder / "mnesia")
        self.start()

    @property
    def control_command(self) -> list[str]:
        """`rabbitmqctl` against it, from anywhere on this machine."""
        program = str(self._program.with_name("rabbitmqctl"))
        settings = [f"{name}={value}" for name, value in self._environment.items()]
        return ["env", *settings, program, "-q", "-n", self._node]

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against it; its output."""
        return _run_control(self.control_command, arguments)

    def close(self) -> None:
        """Stop it for good and remove its folder."""
        if self._process is not None:
            self._process.kill()  # nothing of it is needed any more
        self._mapper.kill()
        remove_folder(self._folder)

    def _write_settings(self, more: Sequence[str] = ()) -> None:
        (self._folder / "plugins").write_text("[].\n")
        lines = "".join(f"{line}\n" for line in more)
        (self._folder / "rabbitmq.conf").write_text(self._own_settings + lines)

    @property
    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "HOME": str(folder),  # of the Erlang cookie
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._peer_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            # Start Erlang in place of the script, so that a signal reaches the broker itself.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1}"
                " +sbwt none +sbwtdcpu none +sbwtdio none"  # leave the processors to the tests
            ),
        }


@contextlib.contextmanager
def virtual_host_at(url: str) -> Iterator[VirtualHost]:
    """A virtual host of our own at somebody's broker, gone afterwards. Raises: Unavailable."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 5672
    if not speaks_amqp(host, port):
        raise Unavailable(f"no RabbitMQ answers at {host}:{port}")
    user, password = parts.username or "guest", parts.password or "guest"
    name = f"dane-test-{secrets.token_hex(6)}"
    admin = _find_admin(host, user, password)
    admin.add(name)
    try:
        yield VirtualHost(parts._replace(path=f"/{name}").geturl())
    finally:
        admin.remove(name)


def speaks_amqp(host: str, port: int) -> bool:
    """Whether an AMQP broker listens there and is ready to talk."""
    try:
        with socket.create_connection((host, port), timeout=2) as wire:
            wire.sendall(b"AMQP\x00\x00\x09\x01")
            return wire.recv(1) == b"\x01"
    except OSError:
        return False


class _ByHttp:
    """Makes virtual hosts over the management plugin's HTTP API."""

    def __init__(self, base: str, user: str, password: str) -> None:
        self._base = base.rstrip("/")
        self._user = user
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode()

    def check(self) -> None:
        self._call("GET", "/api/vhosts")

    def add(self, name: str) -> None:
        self._call("PUT", f"/api/vhosts/{name}", {})
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        self._call("PUT", f"/api/permissions/{name}/{quote(self._user, safe='')}", rights)

    def remove(self, name: str) -> None:
        self._call("DELETE", f"/api/vhosts/{name}")

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> None:
        request = urllib.request.Request(
            self._base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {self._login}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()


class _ByCommand:
    """Makes virtual hosts with `rabbitmqctl`."""

    def __init__(self, command: Sequence[str], user: str) -> None:
        self._command = command
        self._user = user

    def check(self) -> None:
        _run_control(self._command, ["list_vhosts"])

    def add(self, name: str) -> None:
        _run_control(self._command, ["add_vhost", name])
        rights = [".*", ".*", ".*"]
        _run_control(self._command, ["set_permissions", "-p", name, self._user, *rights])

    def remove(self, name: str) -> None:
        _run_control(self._command, ["delete_vhost", name])


def _run_control(command: Sequence[str], arguments: Sequence[str]) -> str:
    done = subprocess.run(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        output = f"{done.stderr}{done.stdout}".strip().splitlines() or ["no output"]
        raise OSError(f"rabbitmqctl {arguments[0]}: {output[0]}")
    return done.stdout


def _find_admin(host: str, user: str, password: str) -> _ByHttp | _ByCommand:
    """Whoever can make virtual hosts on this broker; AMQP itself cannot."""
    candidates: dict[str, _ByHttp | _ByCommand] = {}
    local = host in {"127.0.0.1", "localhost", "::1"}
    if named := os.environ.get(CONTROL_VARIABLE):
        candidates[CONTROL_VARIABLE] = _ByCommand(shlex.split(named), user)
    base = os.environ.get("DANE_TEST_AMQP_API", f"http://{host}:15672")
    candidates[f"the management API at {base}"] = _ByHttp(base, user, password)
    if local and (program := find_program(["rabbitmqctl"], ["/usr/sbin", *_FOLDERS])):
        candidates["rabbitmqctl"] = _ByCommand([program, "-q"], user)
    faults = []
    for name, admin in candidates.items():
        try:
            admin.check()
        except (OSError, urllib.error.URLError, subprocess.SubprocessError) as fault:
            faults.append(f"{name}: {fault}")
        else:
            return admin
    raise Unavailable(
        f"a RabbitMQ answers at {host}, but cannot be given a virtual host of our own: "
        f"{'; '.join(faults)} (enable rabbitmq_management for user {user!r}, naming its address "
        f"in DANE_TEST_AMQP_API if it is another, or give a rabbitmqctl in {CONTROL_VARIABLE})"
    )
