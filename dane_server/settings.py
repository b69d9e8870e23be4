"""The configuration as the server sees it: everything."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pydantic import Field, SecretStr

from dane_core.settings import Section, Settings, bracketed
from dane_core.settings.values import (
    Count,
    CountOrAll,
    Days,
    DaysOfTrying,
    Flag,
    Folder,
    HeaderName,
    Name,
    OptionalCount,
    Port,
    Seconds,
    SecondsOrNever,
    Secret,
    Size,
    StoreUrl,
)

_DRIVERS: Final = {
    "mysql": "mysql+asyncmy",
    "mariadb": "mysql+asyncmy",
    "mariadb+asyncmy": "mysql+asyncmy",
    "sqlite": "sqlite+aiosqlite",
}


class MariaSection(Section):
    """The database, by its parts."""

    USER: Name = "dane"
    PASSWORD: Secret = SecretStr("")
    HOST: Name = "localhost"
    PORT: Port = 3306
    DATABASE: Name = "dane"

    @property
    def url(self) -> str:
        password = quote(self.PASSWORD.get_secret_value(), safe="")
        return (
            f"mysql+asyncmy://{quote(self.USER, safe='')}{':' if password else ''}{password}"
            f"@{bracketed(self.HOST)}:{self.PORT}/{quote(self.DATABASE, safe='')}"
        )


class StoreSection(Section):
    """The database, by its address."""

    URL: StoreUrl = Field(default=None, repr=False)


def _inside(folder: str) -> Callable[[dict[str, Any]], Path]:
    return lambda data: data["DATA_FOLDER"] / folder


class FolderSection(Section):
    """Where the server keeps files, and the folders it gives to tasks."""

    DATA_FOLDER: Folder = Field(default=Path("dane-data"), validate_default=True)
    TEMP_FOLDER: Folder = Field(default_factory=_inside("TEMP"))
    OUT_FOLDER: Folder = Field(default_factory=_inside("OUT"))


class LimitSection(Section):
    """The largest job specification that is accepted; sizes in bytes, texts in characters.

    Columns and routing keys are made for the texts' and the nesting's defaults: those may be
    set lower only. And how many tasks of unfinished jobs may be open, before no more are taken.
    """

    TASKS: Count = 100_000
    DEPTH: Count = Field(default=64, le=64)
    BODY: Size = 32 * 1024 * 1024
    ARGS: Size = 65_536
    METADATA: Size = 65_536
    URL: Count = Field(default=4096, le=4096)
    SOURCE_ID: Count = Field(default=255, le=255)
    KEY: Count = Field(default=100, le=100)
    NAME: Count = Field(default=100, le=100)
    TYPE: Count = Field(default=32, le=32)
    OPEN_TASKS: Count = 2_000_000
    OPEN_TASKS_PER_OWNER: OptionalCount = None


class CompatSection(Section):
    """What DANE 0.1 did and old scripts may rely on."""

    GET_ACTIONS: Flag = False
    EXACT_SHAPE: Flag = False


class RunnerSection(Section):
    """How tasks are sent and looked after."""

    WINDOW: Count = 1000
    BATCH: Count = 500
    SWEEP: Seconds = timedelta(seconds=5)
    LEASE: Seconds = timedelta(seconds=15)
    OVERTIME: Seconds = timedelta(seconds=35)
    LOST_AFTER: Seconds = timedelta(seconds=30)
    STARTS: Count = 3
    PATIENCE: Seconds = timedelta(seconds=60)
    AGEING: SecondsOrNever = timedelta(seconds=300)
    CANCEL_GRACE: Seconds = timedelta(seconds=10)
    CHECK: Seconds = timedelta(seconds=60)


class RetentionSection(Section):
    """How long things are kept, in days, and how many attempts of a task; 0: all, for ever."""

    JOBS: Days = 90.0
    FAILED: Days = 365.0
    ONCE: DaysOfTrying = 7.0
    REJECTED: Days = 30.0
    ATTEMPTS: CountOrAll = 20


class ApiSection(Section):
    """How much one request may ask for, and where a proxy tells who asks."""

    BATCH_BODY: Size = 1024 * 1024 * 1024
    OWNER_HEADER: HeaderName = ""


class ServerSettings(Settings):
    """The merged configuration, with the sections that only the server reads."""

    MARIADB: MariaSection = MariaSection()
    STORE: StoreSection = StoreSection()
    DANE_SERVER: FolderSection = Field(default_factory=FolderSection)
    LIMITS: LimitSection = LimitSection()
    COMPAT: CompatSection = CompatSection()
    RUNNER: RunnerSection = RunnerSection()
    API: ApiSection = ApiSection()
    RETENTION: RetentionSection = RetentionSection()

    @property
    def store_url(self) -> str:
        """Where jobs are kept, with our driver: a SQLite file when no database was named."""
        if self.STORE.URL is not None:
            scheme, _, rest = self.STORE.URL.partition(":")
            return f"{_DRIVERS.get(scheme, scheme)}:{rest}"
        if self.MARIADB.given:
            return self.MARIADB.url
        return f"sqlite+aiosqlite:///{quote(str(self.DANE_SERVER.DATA_FOLDER / 'dane.sqlite'))}"
