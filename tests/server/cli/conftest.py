"""`dane` in a folder of its own, without any configuration."""

from pathlib import Path

import pytest

from tests.core.cli.called import Dane


@pytest.fixture
def dane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dane:
    monkeypatch.setenv("DANE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return Dane(monkeypatch, capsys)
