"""Settings: the order of their sources, and what is said of a wrong one."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from yarl import URL

from dane_core.errors import BadSettings
from dane_core.settings import Settings, load, masked

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below an empty home, in which the test then stands in `work/`."""
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("DANE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def faults_of(*files: Path) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        load(Settings, files=files)
    return [str(fault) for fault in caught.value.faults]


# --- where values come from ------------------------------------------------------------------


@pytest.mark.usefixtures("write")
def test_without_any_source_messages_stay_in_the_process() -> None:
    settings, origins = load(Settings)

    assert settings.exchange_url == "memory://"
    assert settings.api_url == "http://127.0.0.1:5500"
    assert origins == {}


def test_each_source_outdoes_the_one_before(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home, working folder, --config, environment, command line: each sets one key more."""
    keys = ["SLOTS", "GRACE", "HEALTH_PORT"]

    def section(value: int, *names: str) -> str:
        return "WORKER:\n" + "".join(f"  {name}: {value}\n" for name in names)

    write("home/config.yml", section(1, *keys) + "LOGGING: {LEVEL: DEBUG}\n")
    write("work/config.yml", section(2, *keys))
    named = write("named.yml", section(3, "SLOTS", "HEALTH_PORT"))
    monkeypatch.setenv("DANE_WORKER__HEALTH_PORT", "4")
    monkeypatch.setenv("DANE_DANE__PORT", "4")

    settings, origins = load(Settings, files=[named], overrides={"DANE": {"PORT": 5}})

    worker = settings.WORKER
    assert settings.LOGGING.LEVEL == "DEBUG"
    assert worker.GRACE.total_seconds() == 2
    assert (worker.SLOTS, worker.HEALTH_PORT, settings.DANE.PORT) == (3, 4, 5)
    assert origins["WORKER.SLOTS"] == f"{named} line 2"
    assert origins["WORKER.HEALTH_PORT"] == "environment DANE_WORKER__HEALTH_PORT"
    assert origins["DANE.PORT"] == "command line"


def test_an_option_that_was_not_given_overrides_nothing(write: Write) -> None:
    write("work/config.yml", "DANE: {PORT: 6000}")

    settings, _ = load(Settings, overrides={"DANE": {"PORT": None}})

    assert settings.DANE.PORT == 6000


def test_the_home_folder_is_looked_into_when_dane_home_is_unset(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home" / ".dane").mkdir()
    write("home/.dane/config.yml", "DANE: {PORT: 6000}")
    monkeypatch.delenv("DANE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    settings, _ = load(Settings)

    assert settings.DANE.PORT == 6000


@pytest.mark.parametrize(
    "url", ["http://a.test/x", "http://a.test/x/", "http://a.test/x/DANE/", "http://a.test/x/DANE"]
)
@pytest.mark.usefixtures("write")
def test_the_api_is_found_with_and_without_its_prefix(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 wrote API_URL with /DANE/ at its end."""
    monkeypatch.setenv("DANE_API_URL", url)

    settings, _ = load(Settings)

    assert settings.api_url == "http://a.test/x"


def test_settings_made_by_hand_ask_nobody(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded DANE in a test must not find the developer's own configuration."""
    write("work/config.yml", "DANE: {PORT: 6000}")
    monkeypatch.setenv("DANE_DANE__PORT", "6000")
    monkeypatch.setenv("DANE", "{}")

    assert Settings().DANE.PORT == 5500


# --- 0.1's files -----------------------------------------------------------------------------


def test_a_file_of_dane_0_1_is_understood(write: Write) -> None:
    """Sections, keys and habits as its users have them: ports in quotes, CUDA, CONFIG."""
    write(
        "home/config.yml",
        """
DANE:
    HOST: '127.0.0.1'
    PORT: '5500'
    API_URL: 'http://localhost:5500/DANE/'
    MANAGE_URL: 'http://localhost:5500/manage/'
    HOME_DIR: '/home/DANE/.DANE/'
RABBITMQ:
    HOST: 'localhost'
    PORT: 5672
    EXCHANGE: 'DANE-exchange'
    RESPONSE_QUEUE: 'DANE-response-queue'
    USER: 'guest'
    PASSWORD: 'guest'
MARIADB:
    USER: 'new_user'
    PASSWORD: 'new_password'
    HOST: 'localhost'
    PORT: '3306'
    DATABASE: 'DANE-sql-store'
LOGGING:
    DIR: "./dane-server-logs/"
    LEVEL: "DEBUG"
DANE_SERVER:
    TEMP_FOLDER: "/home/DANE/DANE-data/TEMP/"
    OUT_FOLDER: "/home/DANE/DANE-data/OUT/"
CUDA:
    VISIBLE_DEVICES: '1'
CONFIG:
    REQUIRED: False
""",
    )

    settings, _ = load(Settings)

    assert settings.DANE.PORT == 5500
    assert settings.RABBITMQ.EXCHANGE == "DANE-exchange"
    assert settings.exchange_url == "amqp://guest:guest@localhost:5672/%2F"
    assert str(settings.LOGGING.DIR) == str(Path.cwd() / "dane-server-logs")


def test_a_section_whose_keys_are_all_commented_out_is_empty(write: Write) -> None:
    write("work/config.yml", "RABBITMQ:\n  # HOST: broker\nWORKER:\n")

    settings, _ = load(Settings)

    assert settings.exchange_url == "memory://"


# --- the broker --------------------------------------------------------------------------------


def test_one_key_of_the_broker_is_enough_to_use_it(write: Write) -> None:
    write("work/config.yml", "RABBITMQ: {HOST: broker}")

    settings, _ = load(Settings)

    assert settings.exchange_url == "amqp://guest:guest@broker:5672/%2F"


def test_the_address_of_an_exchange_outdoes_the_section(write: Write) -> None:
    write("work/config.yml", "RABBITMQ: {HOST: broker}\nEXCHANGE: {URL: 'memory://'}")

    settings, _ = load(Settings)

    assert settings.exchange_url == "memory://"


def test_any_password_and_any_name_survive_the_url() -> None:
    awkward = "p@s/s:w%o#r?d é"
    settings = Settings(
        RABBITMQ={"USER": "u@x", "PASSWORD": awkward, "HOST": "::1", "VHOST": "a/b"}
    )

    url = URL(settings.exchange_url)

    assert (url.user, url.password, url.host) == ("u@x", awkward, "::1")
    assert url.raw_path == "/a%2Fb"


# --- faults ------------------------------------------------------------------------------------


def test_all_faults_of_all_sources_are_told_at_once_with_their_places(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("work/config.yml", "RABBITMQ:\n  PROT: 5\nRABITMQ: {}\nWORKER: {SLOTS: 0}\n")
    monkeypatch.setenv("DANE_DANE__PORT", "http")

    faults = faults_of()

    variable = "environment DANE_DANE__PORT"
    assert sorted(faults) == [
        f"{path} line 2: RABBITMQ.PROT: unknown key; did you mean PORT?",
        f"{path} line 3: RABITMQ: unknown section; did you mean RABBITMQ?",
        f"{path} line 4: WORKER.SLOTS: expected a whole number, 1 or more, not 0",
        f"{variable}: DANE.PORT: expected a port, a whole number from 1 to 65535, not 'http'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DANE: {PORT: yes}", "DANE.PORT: expected a port, a whole number from 1 to 65535"),
        ("DANE: {PORT: 70000}", "DANE.PORT: expected a port"),
        ("DANE: {HOST: 5}", "DANE.HOST: expected text, in quotes"),
        ("DANE: {API_URL: 'ftp://x'}", "DANE.API_URL: expected an http:// or https:// URL"),
        ("DANE: 5500", "DANE: expected keys below it"),
        ("PORT: 5500", "PORT: unknown section; PORT is a key of DANE and of RABBITMQ"),
        ("mariadb: {HOST: x}", "mariadb: unknown section; did you mean MARIADB?"),
        ("FILESIZE_WORKER: {UNIT: KB}", "FILESIZE_WORKER: unknown section"),
        ("WORKER: {GRACE: soon}", "WORKER.GRACE: expected a number of seconds"),
        ("WORKER: {GRACE: .nan}", "WORKER.GRACE: expected a number of seconds"),
        ("WORKER: {GRACE: .inf}", "WORKER.GRACE: expected a number of seconds"),
        ("WORKER: {GRACE: -1}", "WORKER.GRACE: expected a number of seconds"),
        ("WORKER: {HAND_OFF: 901}", "WORKER.HAND_OFF: expected a number of seconds from 0.25"),
        ("WORKER: {BEAT: 0.1}", "WORKER.BEAT: expected a number of seconds from 0.25 to 900"),
        ("WORKER: {BEAT: yes}", "WORKER.BEAT: expected a number of seconds"),
        ("WORKER: {HEALTH_PORT: 0}", "WORKER.HEALTH_PORT: expected a port"),
        ("LOGGING: {LEVEL: LOUD}", "LOGGING.LEVEL: expected one of DEBUG, INFO"),
        ("EXCHANGE: {URL: redis://x}", "EXCHANGE.URL: expected amqp://"),
        ("RABBITMQ: {PASSWORD: 12345}", "RABBITMQ.PASSWORD: expected text, in quotes"),
        ("- a\n- b", "expected sections"),
        ("DANE: [", "is not YAML"),
        ("DANE:\n\tPORT: 5", "is not YAML"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    write: Write, text: str, expected: str
) -> None:
    faults = faults_of(write("named.yml", text))

    assert len(faults) == 1
    assert expected in faults[0]
    assert "named.yml" in faults[0]


def test_a_key_that_stands_twice_is_a_fault(write: Write) -> None:
    """YAML lets the last one win, and nobody would know."""
    path = write("work/config.yml", "DANE: {PORT: 1}\nWORKER: {SLOTS: 1}\nDANE: {PORT: 2}\n")

    assert faults_of() == [
        f"{path} line 3: DANE: stands twice, first at {path} line 1",
        f"{path} line 3: DANE.PORT: stands twice, first at {path} line 1",
    ]


def test_a_named_file_must_be_there(write: Write, tmp_path: Path) -> None:
    del write

    assert "cannot be read: No such file" in faults_of(tmp_path / "gone.yml")[0]


def test_a_file_that_is_not_text_is_a_fault(write: Write) -> None:
    path = write("named.yml", "")
    path.write_bytes(b"DANE: \xff\xfe")

    assert faults_of(path) == [f"{path}: is not UTF-8 text"]


@pytest.mark.usefixtures("write")
def test_a_variable_with_one_underscore_too_few_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Passed over in silence it would put the jobs into another store."""
    monkeypatch.setenv("DANE_STORE_URL", "mysql://db/dane")

    assert faults_of() == ["environment DANE_STORE_URL: did you mean DANE_STORE__URL?"]


@pytest.mark.usefixtures("write")
def test_what_kubernetes_sets_for_a_service_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service called dane-mariadb makes variables that look like ours."""
    monkeypatch.setenv("DANE_MARIADB_PORT", "tcp://10.0.0.7:3306")
    monkeypatch.setenv("DANE_MARIADB_SERVICE_HOST", "10.0.0.7")

    load(Settings)


def test_a_worker_passes_over_the_servers_sections(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and worker share one file; the worker has none of the server's code."""
    write("work/config.yml", "MARIADB: {HOST: db}\nLIMITS: {TASKS: 5}\n")
    monkeypatch.setenv("DANE_STORE__URL", "mysql://db/dane")

    settings, _ = load(Settings)

    assert not hasattr(settings, "MARIADB")


# --- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("amqp://dane:********@broker/dane", "amqp://dane:s3cret@broker/dane"),
        ("amqp://dane:********@broker/", "amqp://dane:s3/c@r?e#t@broker/"),
        ("mysql://u@db/dane", "mysql://u@db/dane"),
        ("mysql://db/d?user=u&password=********&x=1", "mysql://db/d?user=u&password=s3cret&x=1"),
        ("http://[::1]:5500/", "http://[::1]:5500/"),
        ("plain", "plain"),
        (5, 5),
        (2.5, timedelta(seconds=2.5)),
    ],
)
def test_a_password_in_a_url_is_starred(shown: object, value: object) -> None:
    assert masked(value) == shown


@pytest.mark.parametrize(
    "text",
    [
        "EXCHANGE: {URL: 'redis://u:s3cret@broker/x'}",
        "EXCHANGE: {URL: 'u:s3cret@broker'}",
        "RABBITMQ: {PASSWORD: [s3cret]}",
        "RABBITMQ: {PASSWORD: {s3cret: 1}}",
    ],
)
def test_no_fault_shows_a_password(write: Write, text: str) -> None:
    faults = faults_of(write("named.yml", text))

    assert faults
    assert not any("s3cret" in fault for fault in faults)


def test_no_password_shows_when_settings_are_printed() -> None:
    settings = Settings(
        RABBITMQ={"PASSWORD": "s3cret"}, EXCHANGE={"URL": "amqp://dane:s3cret@broker/"}
    )

    assert "s3cret" not in repr(settings)
