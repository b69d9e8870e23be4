"""The sections of the configuration that server, worker and client share."""

from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dane_core.routing import RESPONSE_QUEUE, TASK_EXCHANGE
from dane_core.settings.values import (
    Count,
    ExchangeUrl,
    Folder,
    Level,
    Name,
    OptionalFolder,
    OptionalPort,
    Port,
    Rhythm,
    Seconds,
    Secret,
    WebUrl,
    home_folder,
)

#: Sections only the server reads. A worker that shares the server's file passes over them.
SERVER_SECTIONS: Final = (
    "MARIADB",
    "STORE",
    "DANE_SERVER",
    "LIMITS",
    "COMPAT",
    "RUNNER",
    "API",
    "RETENTION",
)


class Section(BaseModel):
    """Some settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def given(self) -> bool:
        """Whether the user has set anything here."""
        return bool(self.model_fields_set)


class DaneSection(Section):
    """Where the server listens, and where clients find it."""

    HOST: Name = "127.0.0.1"
    PORT: Port = 5500
    API_URL: WebUrl = Field(default=None, repr=False)
    MANAGE_URL: WebUrl = Field(default=None, repr=False)  # of 0.1; read by nothing
    HOME_DIR: OptionalFolder = None  # likewise


class RabbitSection(Section):
    """The message broker, by its parts."""

    HOST: Name = "localhost"
    PORT: Port = 5672
    USER: Name = "guest"
    PASSWORD: Secret = SecretStr("guest")
    VHOST: Name = "/"
    EXCHANGE: Name = TASK_EXCHANGE
    RESPONSE_QUEUE: Name = RESPONSE_QUEUE

    @property
    def url(self) -> str:
        password = self.PASSWORD.get_secret_value()
        return (
            f"amqp://{quote(self.USER, safe='')}:{quote(password, safe='')}"
            f"@{bracketed(self.HOST)}:{self.PORT}/{quote(self.VHOST, safe='')}"
        )


class ExchangeSection(Section):
    """The message broker, by its address."""

    URL: ExchangeUrl = Field(default=None, repr=False)


class LoggingSection(Section):
    """What is logged, and whether to files too."""

    DIR: OptionalFolder = None
    LEVEL: Level = "INFO"


class WorkerSection(Section):
    """How `dane worker` works."""

    SLOTS: Count = 1
    GRACE: Seconds = timedelta(seconds=30)
    HAND_OFF: Rhythm = timedelta(seconds=60)
    BEAT: Rhythm = timedelta(seconds=15)
    HEALTH_PORT: OptionalPort = None
    SPOOL: Folder = Field(default_factory=lambda: home_folder() / "spool")


class Settings(BaseSettings):
    """The merged configuration, as a worker or a client sees it.

    Made by hand it takes nothing from files or the environment; `load` does.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, case_sensitive=True)

    DANE: DaneSection = DaneSection()
    RABBITMQ: RabbitSection = RabbitSection()
    EXCHANGE: ExchangeSection = ExchangeSection()
    LOGGING: LoggingSection = LoggingSection()
    WORKER: WorkerSection = WorkerSection()
    CUDA: dict[str, Any] = {}  # of 0.1; read by nothing
    CONFIG: dict[str, Any] = {}  # likewise

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings  # `load` has its own
        return (init_settings,)

    @property
    def exchange_url(self) -> str:
        """Where messages go: `memory://` when no broker was named."""
        if self.EXCHANGE.URL is not None:
            return self.EXCHANGE.URL
        return self.RABBITMQ.url if self.RABBITMQ.given else "memory://"

    @property
    def api_url(self) -> str:
        """Where the server answers, without `/DANE` at its end."""
        if self.DANE.API_URL is None:
            return f"http://{bracketed(self.DANE.HOST)}:{self.DANE.PORT}"
        return self.DANE.API_URL.rstrip("/").removesuffix("/DANE")


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
