"""Kinds of setting, each with the words for what it expects."""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def home_folder() -> Path:
    """What DANE keeps for one user: `$DANE_HOME`, or `~/.dane`."""
    return Path(os.environ.get("DANE_HOME") or "~/.dane").expanduser().absolute()


def expecting(what: str) -> WrapValidator:
    """Say `expected WHAT`, whatever pydantic found wrong with a value."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except (ValidationError, ValueError, OverflowError):
            raise PydanticCustomError("expected", "expected {what}", {"what": what}) from None

    return WrapValidator(check)


def _number_not_flag(value: Any) -> Any:
    # To Python, and to pydantic after it, `yes` is 1.
    if isinstance(value, bool):
        raise ValueError  # noqa: TRY004  pydantic turns only this one into a fault
    return value


def _seconds(value: Any) -> Any:
    return value if isinstance(value, timedelta) else timedelta(seconds=float(value))


def _level(value: str) -> str:
    if value.upper() not in _LEVELS:
        raise ValueError
    return value.upper()


def _absolute(path: Path) -> Path:
    # Folders travel to workers, which may stand in another directory.
    return path.expanduser().absolute()


def _address(*schemes: str) -> Callable[[str | None], str | None]:
    def check(url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in schemes:
            raise ValueError
        return url

    return check


Port = Annotated[
    int,
    Field(ge=1, le=65_535),
    BeforeValidator(_number_not_flag),
    expecting("a port, a whole number from 1 to 65535"),
]
OptionalPort = Annotated[
    int | None,
    Field(ge=1, le=65_535),
    BeforeValidator(_number_not_flag),
    expecting("a port, a whole number from 1 to 65535"),
]
Count = Annotated[
    int,
    Field(ge=1, lt=2**31),
    BeforeValidator(_number_not_flag),
    expecting("a whole number, 1 or more"),
]
OptionalCount = Annotated[
    int | None,
    Field(ge=1, lt=2**31),
    BeforeValidator(_number_not_flag),
    expecting("a whole number, 1 or more, or nothing for no limit"),
]
Size = Annotated[
    int,
    Field(ge=1, lt=2**40),
    BeforeValidator(_number_not_flag),
    expecting("a number of bytes, 1 or more"),
]
Seconds = Annotated[
    timedelta,
    Field(gt=timedelta(0), le=timedelta(days=366)),
    BeforeValidator(_seconds),
    BeforeValidator(_number_not_flag),
    expecting("a number of seconds, more than 0"),
]
SecondsOrNever = Annotated[
    timedelta,
    Field(ge=timedelta(0), le=timedelta(days=366)),
    BeforeValidator(_seconds),
    BeforeValidator(_number_not_flag),
    expecting("a number of seconds, 0 for never"),
]
#: How often somebody speaks up, or how soon: not all the time, and not too late for a lease.
Rhythm = Annotated[
    timedelta,
    Field(ge=timedelta(seconds=0.25), le=timedelta(minutes=15)),
    BeforeValidator(_seconds),
    BeforeValidator(_number_not_flag),
    expecting("a number of seconds from 0.25 to 900"),
]
Days = Annotated[
    float,
    Field(ge=0, le=36_500),
    BeforeValidator(_number_not_flag),
    expecting("a number of days, 0 for ever"),
]
DaysOfTrying = Annotated[
    float,
    Field(ge=1, le=36_500),
    BeforeValidator(_number_not_flag),
    expecting("a number of days, 1 or more"),
]
CountOrAll = Annotated[
    int,
    Field(ge=0, lt=2**31),
    BeforeValidator(_number_not_flag),
    expecting("a whole number, 0 for all"),
]
Flag = Annotated[bool, expecting("true or false")]
Name = Annotated[str, Field(min_length=1), expecting("text, in quotes if it looks like a number")]
HeaderName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{0,100}$"),
    expecting("the name of a request header, such as X-Remote-User"),
]
Secret = Annotated[SecretStr, expecting("text, in quotes if it looks like a number")]
Folder = Annotated[Path, AfterValidator(_absolute), expecting("the path of a folder")]
OptionalFolder = Annotated[
    Path | None,
    AfterValidator(lambda path: None if path is None else _absolute(path)),
    expecting("the path of a folder"),
]
Level = Annotated[str, AfterValidator(_level), expecting("one of " + ", ".join(_LEVELS))]
WebUrl = Annotated[
    str | None, AfterValidator(_address("http", "https")), expecting("an http:// or https:// URL")
]
ExchangeUrl = Annotated[
    str | None,
    AfterValidator(_address("amqp", "amqps", "memory")),
    expecting("amqp://user:password@host:port/vhost, amqps://… or memory://"),
]
StoreUrl = Annotated[
    str | None,
    AfterValidator(
        _address(
            "mysql+asyncmy", "mariadb+asyncmy", "mysql", "mariadb", "sqlite+aiosqlite", "sqlite"
        )
    ),
    expecting("mysql+asyncmy://user:password@host:port/database or sqlite+aiosqlite:///file"),
]

_CREDENTIALS: Final = re.compile(r"(://[^:/?#@]*:).*@")
_SECRET_PARAMETER: Final = re.compile(
    r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&#]*", re.IGNORECASE
)


def masked(value: Any) -> Any:
    """A setting as it may be shown: passwords are starred, also those inside URLs."""
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and "://" in value:
        return _SECRET_PARAMETER.sub(r"\1********", _CREDENTIALS.sub(r"\1********@", value))
    return value
