"""Every file an operator is given is read here, so that none of them can rot."""

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml

from dane_core.cli import build
from dane_core.settings import Section, Settings, load
from dane_server.settings import ServerSettings

ROOT: Final = Path(__file__).parent.parent
CONFIG: Final = ROOT / "config"
EXAMPLES: Final = sorted(CONFIG.glob("*.yml"))

#: A key that is commented out, in a file where keys stand two spaces in.
_COMMENTED: Final = re.compile(r"^  # (?=[A-Z_]+: )", re.MULTILINE)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of the developer's own."""
    monkeypatch.setenv("DANE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def every_key() -> Iterator[str]:
    for name, field in ServerSettings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from (f"{name}.{key}" for key in section.model_fields)


# --- the examples --------------------------------------------------------------------------------


def test_there_is_an_example_for_each_part() -> None:
    assert [path.stem for path in EXAMPLES] == ["client", "embedded", "server", "worker"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", [Settings, ServerSettings])
def test_an_example_is_accepted_as_it_is(path: Path, kind: type[Settings]) -> None:
    """By the server and by a worker, who may share it."""
    load(kind, files=[path])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_an_example_has_commented_out_is_accepted_too(path: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.yml"
    whole.write_text(_COMMENTED.sub("  ", path.read_text()))

    _, origins = load(ServerSettings, files=[whole])

    assert len(origins) >= len(load(ServerSettings, files=[path])[1])


def test_what_the_server_example_calls_a_default_is_one(tmp_path: Path) -> None:
    """A reader believes the number in the file, and not the one in the code."""
    whole = tmp_path / "whole.yml"
    whole.write_text(_COMMENTED.sub("  ", (CONFIG / "server.yml").read_text()))
    plain, _ = load(ServerSettings)
    told, origins = load(ServerSettings, files=[whole])

    for section in ("LIMITS", "API", "RUNNER", "RETENTION", "COMPAT", "DANE_SERVER"):
        assert getattr(told, section) == getattr(plain, section)
        assert section in origins


def test_every_setting_is_in_some_example() -> None:
    of_0_1 = {"DANE.MANAGE_URL", "DANE.HOME_DIR"}  # accepted, and read by nothing

    told: set[str] = set()
    for path in EXAMPLES:
        section = ""
        for line in path.read_text().splitlines():
            section = match[1] if (match := re.match(r"([A-Z_]+):", line)) else section
            told.update(f"{section}.{key}" for key in re.findall(r"^  (?:# )?([A-Z_]+): ", line))

    assert set(every_key()) - told == of_0_1


def test_the_server_example_reaches_for_a_database_and_a_broker() -> None:
    settings, _ = load(ServerSettings, files=[CONFIG / "server.yml"])

    assert settings.store_url == "mysql+asyncmy://dane@127.0.0.1:3306/dane"
    assert settings.exchange_url == "amqp://dane:guest@127.0.0.1:5672/dane"


def test_the_embedded_example_reaches_for_nothing() -> None:
    settings, _ = load(ServerSettings, files=[CONFIG / "embedded.yml"])

    assert settings.store_url.startswith("sqlite+aiosqlite:///")
    assert settings.exchange_url == "memory://"


# --- the broker and the database ---------------------------------------------------------------


def broker_settings() -> dict[str, str]:
    lines = [line.strip() for line in (CONFIG / "rabbitmq.conf").read_text().splitlines()]
    pairs = [line.split(" = ") for line in lines if line and not line.startswith("#")]
    assert len(pairs) == len({name for name, _ in pairs})
    return dict(pairs)


def test_a_task_is_handed_off_long_before_the_broker_takes_its_message_away() -> None:
    """The broker looks once a minute; its own default is half an hour."""
    at_most = int(broker_settings().get("consumer_timeout", 1_800_000)) / 1000

    assert Settings().WORKER.HAND_OFF.total_seconds() < at_most / 2


def test_the_broker_is_told_what_reliability_asks_for() -> None:
    settings = broker_settings()

    assert int(settings["heartbeat"]) <= 10
    assert settings["loopback_users.guest"] == "true"
    assert settings["disk_free_limit.absolute"] == "2GB"


def test_the_database_is_told_what_reliability_asks_for() -> None:
    parser = configparser.ConfigParser(allow_no_value=True, strict=True, interpolation=None)
    parser.read(CONFIG / "mariadb.cnf")
    told = dict(parser["mariadbd"])

    assert told["transaction-isolation"] == "READ-COMMITTED"
    assert told["binlog_format"] == "ROW"
    assert told["innodb_flush_log_at_trx_commit"] == told["sync_binlog"] == "1"
    assert told["innodb_rollback_on_timeout"] == "ON"
    assert told["character-set-server"] == "utf8mb4"
    assert told["local_infile"] == "OFF"


@pytest.mark.parametrize("name", ["rabbitmq.conf", "mariadb.cnf"])
def test_every_setting_has_its_why(name: str) -> None:
    """Comments stand above: no block of settings begins a file or a paragraph without one."""
    paragraphs = (CONFIG / name).read_text().split("\n\n")

    assert all(
        paragraph.lstrip().startswith("#") for paragraph in paragraphs if "[" not in paragraph
    )


# --- compose.yaml and the Dockerfile -------------------------------------------------------------


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


SERVICES: Final = sorted(compose()["services"])


def test_compose_has_every_part() -> None:
    assert set(SERVICES) == {"rabbitmq", "mariadb", "migrate", "api", "runner", "worker"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name: str) -> None:
    image = compose()["services"][name]["image"]

    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+(\.dev\d+)?", image)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_every_service_has_a_health_check(name: str) -> None:
    assert compose()["services"][name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_no_port_is_open_to_other_machines(name: str) -> None:
    service = compose()["services"][name]

    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service.get("network_mode", "host" if "ports" not in service else "") in ("host", "")


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_has_a_default(name: str) -> None:
    """`${X:?…}` stops Compose with a sentence when X is not set."""
    secrets = {
        key: value
        for key, value in compose()["services"][name].get("environment", {}).items()
        if key.endswith(("PASSWORD", "PASS")) and "RANDOM" not in key
    }

    assert all(re.match(r"\$\{[A-Z_]+:\?", value) for value in secrets.values())


def test_the_example_of_the_environment_file_names_every_variable_and_no_password() -> None:
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    lines = (CONFIG / "env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert set(given) == wanted
    assert all(value == "" for name, value in given.items() if name.endswith("PASSWORD"))


@pytest.mark.parametrize("name", ["migrate", "api", "runner", "worker"])
def test_what_compose_tells_dane_is_understood(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its file, its variables and its command, as the container will see them."""
    service = compose()["services"][name]
    assert "./config/server.yml:/etc/dane/config.yml:ro" in service["volumes"]
    (tmp_path / "config.yml").write_text((CONFIG / "server.yml").read_text())
    for key, value in service["environment"].items():
        monkeypatch.setenv(key, value)

    settings, _ = load(ServerSettings)

    assert settings.store_url.startswith("mysql+asyncmy://dane:")
    assert settings.exchange_url.endswith("@127.0.0.1:5672/dane")
    assert is_command(service["command"])


def is_command(words: list[str]) -> bool:
    """Whether `dane` has this command, and it takes these arguments."""
    command: Any = typer.main.get_command(build())
    context = command.make_context("dane", list(words), resilient_parsing=True)
    while getattr(command, "commands", None):
        name, command, rest = command.resolve_command(context, words)
        words = list(rest)
        context = command.make_context(name, list(words), parent=context)
    return True


def test_a_command_that_dane_lacks_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such"):
        is_command(["serve", "--roll", "api"])
    with pytest.raises(Exception, match="No such"):
        is_command(["db", "downgrade-everything"])


def instructions() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def test_the_image_is_built_from_pinned_images_and_runs_as_nobody_special() -> None:
    images = [words[1] for words in instructions() if words[0] == "FROM"]
    users = [words[1] for words in instructions() if words[0] == "USER"]

    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image) for image in images)
    assert users == ["dane"]
    assert ["ENTRYPOINT", "[dane]"] in instructions()


def test_everything_the_image_is_built_from_is_there_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        source
        for words in instructions()
        if words[0] == "COPY" and not words[1].startswith("--")
        for source in words[1:-1]
    ]

    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_files_that_compose_mounts_are_there() -> None:
    mounts = [
        mount.split(":")[0]
        for service in compose()["services"].values()
        for mount in service.get("volumes", ())
        if mount.startswith("./")
    ]

    assert mounts
    assert all((ROOT / mount).is_file() for mount in mounts)
