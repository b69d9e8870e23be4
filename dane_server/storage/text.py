"""Writes statements out for MariaDB: SQLAlchemy the text, once, and the driver the values."""

import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from dane_server.storage.functions import listed
from dane_server.storage.mariadb import Connection

Parameters = Mapping[str, Any]


def text_of(
    statement: sa.Executable,
    parameters: Parameters | Sequence[Parameters] | None,
    dialect: sa.Dialect,
) -> "Text":
    """How a statement is written that is given values of these names; kept as long as it is."""
    first = parameters[0] if isinstance(parameters, Sequence) else parameters or {}
    texts = _TEXTS.setdefault(statement, {})
    names = tuple(first)
    if (text := texts.get(names)) is None:
        text = texts[names] = Text(statement, names, dialect)
    return text


#: Of statements that are made once, by the names of their parameters.
_TEXTS: Final = WeakKeyDictionary[sa.Executable, dict[tuple[str, ...], "Text"]]()


def forget_texts() -> None:
    """Have all statements written anew, as they may be written in another way by now."""
    _TEXTS.clear()


class Text:
    """The text of a statement, which SQLAlchemy writes once, with places for values.

    It would make two hundred calls to fill them in each time. The driver writes the values.
    """

    def __init__(self, statement: sa.Executable, names: Sequence[str], dialect: sa.Dialect) -> None:
        compiled = _compiled(statement, names, dialect)
        lists = set(_LIST.findall(compiled.string))
        own = compiled.construct_params(_check=False)
        self._sql = _LIST.sub("%s", compiled.string)
        binds = [(name, compiled.binds[name]) for name in compiled.positiontup or ()]
        if missing := [name for name, bind in binds if bind.required and name not in names]:
            raise TypeError(f"no value for {', '.join(missing)}")
        self._places = [
            _Place(
                name=bind.key,
                is_given=bind.key in names,
                own=own[name],
                process=listed if name in lists else _processor(bind.type, dialect),
            )
            for name, bind in binds
        ]
        self._insert = _INSERT.fullmatch(self._sql)
        self._columns = [column.key for column in getattr(statement, "exported_columns", ())]

    def filled(
        self, parameters: Parameters | Sequence[Parameters] | None, driver: Connection
    ) -> str:
        """The text to be sent; of an insert the values may be of many rows."""
        if parameters is None or isinstance(parameters, Mapping):
            return self._sql % tuple(self._literals(parameters or {}, driver))
        if self._insert is None:
            raise TypeError("only an insert takes many rows")
        before, places, behind = self._insert.groups(default="")
        columns = [self._column(place, parameters, driver) for place in self._places]
        rows = ",".join([places % row for row in zip(*columns, strict=True)])
        return f"{before % ()}{rows}{behind % ()}"

    def rows(self, found: Sequence[Sequence[Any]]) -> Sequence[Any]:
        return [*map(self._row, found)]

    @cached_property
    def _row(self) -> Callable[[Sequence[Any]], Any]:
        names = " ".join(self._columns)
        kind: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024 - found out here
        return cast("Callable[[Sequence[Any]], Any]", kind._make)

    def _literals(self, values: Parameters, driver: Connection) -> Iterator[str]:
        for name, is_given, own, process in self._places:
            value = values[name] if is_given else own
            yield driver.literal(value if process is None or value is None else process(value))

    def _column(
        self, place: "_Place", rows: Sequence[Parameters], driver: Connection
    ) -> Sequence[str]:
        """The values of one column in all rows, written once where they are equal."""
        name, is_given, own, process = place
        values = [row[name] for row in rows] if is_given else [own]
        if values.count(values[0]) == len(values):
            values = values[:1]
        if process is not None:
            values = [None if value is None else process(value) for value in values]
        return [driver.literal(value) for value in values] * (len(rows) // len(values))


class _Place(NamedTuple):
    """Where a value stands in a statement.

    It is given under a name each time, or the statement's own. What is to be done to it before
    the driver writes it, SQLAlchemy knows by its type.
    """

    name: str
    is_given: bool
    own: Any
    process: Callable[[Any], Any] | None


#: Where SQLAlchemy would put as many places as a list has values.
_LIST: Final = re.compile(r"\(__\[POSTCOMPILE_(\w+)\]\)")
#: What stands before the values of an insert, they themselves, and what stands behind them.
_INSERT: Final = re.compile(
    r"(INSERT .+? VALUES )(\(.+?\))( RETURNING .+| ON DUPLICATE KEY .+)?", re.DOTALL
)


def _compiled(statement: sa.Executable, names: Sequence[str], dialect: sa.Dialect) -> SQLCompiler:
    if not isinstance(statement, sa.ClauseElement):
        raise TypeError("only what SQLAlchemy can write")
    compiled = statement.compile(dialect=dialect, column_keys=names)
    return cast("SQLCompiler", compiled)


def _processor(kind: TypeEngine[Any], dialect: sa.Dialect) -> Callable[[Any], Any] | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)
