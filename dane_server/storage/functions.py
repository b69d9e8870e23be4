"""SQL functions that the databases spell differently, the database's clock above all."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType


class now(FunctionElement[Any]):  # noqa: N801 - reads like the SQL function it is
    """The time in the database, UTC, in microseconds (SQLite: milliseconds).

    Servers never compare their own clocks with each other's: every comparison is made here.
    """

    type = sa.DateTime()
    inherit_cache = True


class later(FunctionElement[Any]):  # noqa: N801
    """`later(seconds)`: the time in the database some seconds from now; may be negative."""

    type = sa.DateTime()
    inherit_cache = True


@compiles(now)
def _now(element: now, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "UTC_TIMESTAMP(6)"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(later)
def _later(element: later, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(UTC_TIMESTAMP(6) + INTERVAL ROUND({seconds} * 1000000) MICROSECOND)"


@compiles(later, "sqlite")
def _later_sqlite(element: later, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


class behind(FunctionElement[Any]):  # noqa: N801
    """`behind(columns…, values…)`: rows after these whole numbers, in the order of the columns.

    Spelled so that an index of them is entered at the right place.
    """

    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Self:  # noqa: ARG002  theirs
        """It stands as it is: with the usual `= 1` behind it no index would be entered."""
        return self


@compiles(behind)
def _behind(element: behind, compiler: SQLCompiler, **kw: Any) -> str:
    columns, values = _halves(element)
    steps = [
        sa.and_(
            *(column == value for column, value in zip(columns[:size], values[:size], strict=True)),
            columns[size] > values[size],
        )
        for size in range(len(columns))
    ]
    return compiler.process(sa.or_(*steps).self_group(), **kw)


@compiles(behind, "sqlite")
def _behind_sqlite(element: behind, compiler: SQLCompiler, **kw: Any) -> str:
    columns, (*values, last) = _halves(element)
    # Not >: SQLite would read all rows with these values before it finds the first one behind.
    return compiler.process(sa.tuple_(*columns) >= sa.tuple_(*values, last + 1), **kw)


def _halves(element: behind) -> tuple[list[Any], list[Any]]:
    clauses = list(element.clauses)
    half = len(clauses) // 2
    return clauses[:half], clauses[half:]


class among(FunctionElement[Any]):  # noqa: N801
    """`among(column, values)`: rows with one of the `values`, a parameter that is a list.

    `IN`, whose list the driver writes for MariaDB as it writes any other parameter. SQLAlchemy
    would make a parameter of each value, and the text of the statement anew each time. Columns
    may be several: then each value is a tuple, and there is one at least. Of the parameter only
    the name counts.
    """

    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Self:  # noqa: ARG002  theirs
        """It stands as it is, without `= 1` behind it."""
        return self


class _Listed(UserDefinedType[Any]):
    """A parameter that is a list of values; the driver knows how to write a tuple."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Any], Any]:  # noqa: ARG002  theirs
        return listed


def listed(values: Iterable[Any]) -> tuple[Any, ...]:
    """A list as the driver writes it; of none at all, one that nothing is among."""
    return tuple(values) or (None,)


@compiles(among)
def _among(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    listed = sa.bindparam(values.key, type_=_Listed())
    return f"{compiler.process(column, **kw)} IN {compiler.process(listed, **kw)}"


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    return compiler.process(column.in_(sa.bindparam(values.key, expanding=True)), **kw)


class looked_up(FunctionElement[Any]):  # noqa: N801
    """`looked_up(column)`: its value, which no index is to be searched for.

    MariaDB is told so by a hint; SQLite has none.
    """

    inherit_cache = True

    def __init__(self, column: sa.Column[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(looked_up)
def _looked_up(element: looked_up, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(looked_up, "sqlite")
def _looked_up_sqlite(element: looked_up, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


class json_text(FunctionElement[Any]):  # noqa: N801
    """`json_text(document, path, name)`: a member of a JSON object in a text column, as text.

    `path` is `name` as a JSON path, for databases that need one.
    """

    type = sa.String()
    inherit_cache = True


@compiles(json_text)
def _json_text(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    document, path = (compiler.process(clause, **kw) for clause in list(element.clauses)[:2])
    # The column's own collation would find "A" for "a", and "a" for "a ".
    text = f"JSON_UNQUOTE(JSON_EXTRACT({document}, {path}))"
    return f"CONVERT({text} USING utf8mb4) COLLATE utf8mb4_nopad_bin"


@compiles(json_text, "sqlite")
def _json_text_sqlite(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    document, _, name = element.clauses
    member = compiler.process(name, **kw)
    # Not json_extract: before 3.45 no path can name a member with a quotation mark in it.
    members = f"json_each({compiler.process(document, **kw)}) AS m"
    text = "CASE WHEN m.type IN ('true','false','null') THEN m.type ELSE CAST(m.value AS TEXT) END"
    return f"(SELECT {text} FROM {members} WHERE m.key = {member})"  # noqa: S608 - all our own


def insert_missing(table: sa.Table) -> sa.Insert:
    """An insert that leaves a row with the same key as it is; one under way makes it wait."""
    return (
        sa.insert(table)
        .prefix_with("IGNORE", dialect="mysql")
        .prefix_with("IGNORE", dialect="mariadb")
        .prefix_with("OR IGNORE", dialect="sqlite")
    )


class CountingInsert(sa.Insert):
    """An insert of counted things: of a row that is there, `times` grows by that of the new one.

    Its other columns are set to the new values.
    """

    inherit_cache = True


@compiles(CountingInsert)
def _counting_insert(element: CountingInsert, compiler: SQLCompiler, **kw: Any) -> str:
    others = [f"{name} = VALUES({name})" for name in _not_key(element) if name != "times"]
    changes = ", ".join(["times = times + VALUES(times)", *others])
    inserted: str = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]
    return f"{inserted} ON DUPLICATE KEY UPDATE {changes}"


@compiles(CountingInsert, "sqlite")
def _counting_insert_sqlite(element: CountingInsert, compiler: SQLCompiler, **kw: Any) -> str:
    key = ", ".join(column.name for column in element.table.primary_key)
    others = [f"{name} = excluded.{name}" for name in _not_key(element) if name != "times"]
    changes = ", ".join(["times = times + excluded.times", *others])
    inserted: str = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]
    return f"{inserted} ON CONFLICT ({key}) DO UPDATE SET {changes}"


def _not_key(element: CountingInsert) -> list[str]:
    return [column.name for column in element.table.columns if not column.primary_key]
