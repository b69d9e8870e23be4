"""`dane config` and `dane db`."""

from pathlib import Path

import pytest

from tests.core.cli.called import Dane


def test_config_prints_every_value_and_where_it_is_from(
    dane: Dane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yml").write_text("RABBITMQ:\n  HOST: broker\n")
    monkeypatch.setenv("DANE_WORKER__SLOTS", "7")

    said = dane("config", "--json").json

    assert said["settings"]["RABBITMQ"]["HOST"] == "broker"
    assert said["settings"]["WORKER"] == {
        "SLOTS": 7,
        "GRACE": 30.0,
        "HAND_OFF": 60.0,
        "BEAT": 15.0,
        "HEALTH_PORT": None,
        "SPOOL": f"{tmp_path}/home/spool",
    }
    assert said["origins"]["RABBITMQ.HOST"] == f"{tmp_path}/config.yml line 2"
    assert said["origins"]["WORKER.SLOTS"] == "environment DANE_WORKER__SLOTS"
    assert "DANE.PORT" not in said["origins"]
    assert said["files"] == [f"{tmp_path}/config.yml"]


def test_config_for_people_says_the_same(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("RABBITMQ:\n  HOST: broker\n")

    lines = dane("config").out.splitlines()

    (host,) = [line.split() for line in lines if line.startswith("RABBITMQ.HOST")]
    (port,) = [line.split() for line in lines if line.startswith("RABBITMQ.PORT")]
    assert host == ["RABBITMQ.HOST", "broker", f"{tmp_path}/config.yml", "line", "2"]
    assert port == ["RABBITMQ.PORT", "5672", "default"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_config_shows_no_secret(dane: Dane, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "config.yml").write_text(
        """
MARIADB: {HOST: db, PASSWORD: s3cret-1}
RABBITMQ: {HOST: broker, PASSWORD: s3cret-2}
STORE: {URL: 'mysql://dane:s3cret-3@db/dane'}
EXCHANGE: {URL: 'amqp://dane:s3cret-4@broker/dane'}
"""
    )

    said = dane("config", *options)

    assert "s3cret" not in said.out
    assert "dane:********@broker/dane" in said.out


def test_a_password_that_is_not_set_is_not_starred(dane: Dane) -> None:
    """Stars would say that there is one."""
    assert not dane("config", "--json").json["settings"]["MARIADB"]["PASSWORD"]


def test_wrong_settings_are_all_told_and_nothing_is_printed(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("MARIADB: {HSOT: db, PORT: x}")

    said = dane("config", "--json")

    assert said.code == 78
    assert said.out == ""
    assert "did you mean HOST?" in said.err
    assert "MARIADB.PORT: expected a port" in said.err


def test_tables_are_checked_made_and_checked_again(dane: Dane) -> None:
    before = dane("db", "check")
    made = dane("db", "upgrade")
    again = dane("db", "upgrade", "--json")
    after = dane("db", "check", "--json")

    assert before.code == 78
    assert "dane db upgrade" in before.err
    assert (made.code, again.code, after.code) == (0, 0, 0)
    assert again.json == {"upgraded": True}
    assert after.json == {"current": True}


@pytest.mark.services
def test_tables_are_made_in_mariadb(
    dane: Dane, mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANE_STORE__URL", mysql_url)

    made = dane("db", "upgrade")

    assert (made.code, made.err) == (0, "")
    assert dane("db", "check").code == 0


def test_a_database_that_does_not_answer_is_exit_code_3(
    dane: Dane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANE_STORE__URL", "mysql://dane:s3cret@127.0.0.1:1/dane")

    said = dane("db", "check")

    assert said.code == 3
    assert said.err.startswith("dane: ")
    assert "s3cret" not in said.err
    assert "Traceback" not in said.err
