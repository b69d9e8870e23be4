"""The server's own settings."""

from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import make_url

from dane_core.errors import BadSettings
from dane_core.settings import SERVER_SECTIONS, Settings, load
from dane_core.spec import Limits
from dane_server.settings import ServerSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no configuration anywhere."""
    monkeypatch.setenv("DANE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folders_of(settings: ServerSettings) -> tuple[Path, Path]:
    return settings.DANE_SERVER.TEMP_FOLDER, settings.DANE_SERVER.OUT_FOLDER


def test_workers_know_the_servers_sections_by_name() -> None:
    """They pass over these and no others, so that a typo is still a fault."""
    assert set(ServerSettings.model_fields) - set(Settings.model_fields) == set(SERVER_SECTIONS)


def test_the_limits_are_those_of_specifications() -> None:
    """One name and one default for each, in capitals here."""
    limits = {name.upper(): value for name, value in asdict(Limits()).items()}

    assert ServerSettings().LIMITS.model_dump().items() >= limits.items()


def test_without_a_database_jobs_are_kept_in_a_file_in_the_data_folder(folder: Path) -> None:
    settings, _ = load(ServerSettings)

    data = folder / "dane-data"
    assert make_url(settings.store_url).database == str(data / "dane.sqlite")
    assert make_url(settings.store_url).drivername == "sqlite+aiosqlite"
    assert folders_of(settings) == (data / "TEMP", data / "OUT")


@pytest.mark.usefixtures("folder")
def test_temp_and_out_follow_the_data_folder_unless_they_are_given() -> None:
    overrides = {"DANE_SERVER": {"DATA_FOLDER": "/data", "OUT_FOLDER": "/out"}}

    settings, _ = load(ServerSettings, overrides=overrides)

    assert folders_of(settings) == (Path("/data/TEMP"), Path("/out"))


def test_a_data_folder_of_any_name_is_found_again() -> None:
    settings = ServerSettings(DANE_SERVER={"DATA_FOLDER": "/what? a 100% #1 folder/é"})

    database = make_url(settings.store_url).database

    assert database == "/what? a 100% #1 folder/é/dane.sqlite"


def test_one_key_of_the_database_is_enough_to_use_it() -> None:
    settings = ServerSettings(MARIADB={"HOST": "db"})

    assert settings.store_url == "mysql+asyncmy://dane@db:3306/dane"


def test_any_database_password_survives_the_url() -> None:
    awkward = "p@s/s:w%o#r?d é"
    settings = ServerSettings(
        MARIADB={"USER": "u@x", "PASSWORD": awkward, "HOST": "::1", "DATABASE": "DANE-sql-store"}
    )

    url = make_url(settings.store_url)

    assert (url.username, url.password, url.host) == ("u@x", awkward, "::1")
    assert url.database == "DANE-sql-store"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("mysql://u:p@db/dane", "mysql+asyncmy://u:p@db/dane"),
        ("mariadb://db/dane", "mysql+asyncmy://db/dane"),
        ("mysql+asyncmy://db/dane", "mysql+asyncmy://db/dane"),
        ("sqlite:////tmp/x.sqlite", "sqlite+aiosqlite:////tmp/x.sqlite"),
    ],
)
def test_the_address_of_a_store_outdoes_the_section_and_gets_our_driver(
    given: str, used: str
) -> None:
    settings = ServerSettings(STORE={"URL": given}, MARIADB={"HOST": "elsewhere"})

    assert settings.store_url == used


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("STORE", "URL", "postgres://u:s3cret@db/dane"),
        ("LIMITS", "TASKS", 0),
        ("LIMITS", "BODY", "32 MiB"),
        ("COMPAT", "GET_ACTIONS", "maybe"),
        ("RUNNER", "SWEEP", 0),
        ("DANE_SERVER", "DATA_FOLDER", 5),
        ("API", "BATCH_BODY", True),
        ("LIMITS", "SOURCE_ID", 256),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_value_is_one_fault(section: str, key: str, value: object) -> None:
    with pytest.raises(BadSettings) as caught:
        load(ServerSettings, overrides={section: {key: value}})

    (fault,) = caught.value.faults
    assert str(fault).startswith(f"command line: {section}.{key}: expected ")
    assert "s3cret" not in str(fault)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("JOBS", -1, "a number of days, 0 for ever"),
        ("FAILED", True, "a number of days, 0 for ever"),
        ("ONCE", 0.5, "a number of days, 1 or more"),
        ("ATTEMPTS", 2.5, "a whole number, 0 for all"),
    ],
)
def test_what_is_kept_cannot_be_set_to_nonsense(setting: str, value: object, told: str) -> None:
    """A request that is sent again within a day must still find its job."""
    with pytest.raises(BadSettings) as refused:
        load(ServerSettings, overrides={"RETENTION": {setting: value}})

    [fault] = refused.value.faults
    assert fault.message.startswith(f"RETENTION.{setting}: expected {told}, not")
