"""What migrations are written in: column types, and statements that may run twice.

Stores were made with these, so none of them ever changes: what a later migration needs is
added. `tables.py` has its own, and a test compares the outcome of the two.
"""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine


def _on_mariadb(portable: TypeEngine[Any], precise: TypeEngine[Any]) -> TypeEngine[Any]:
    return portable.with_variant(precise, "mysql", "mariadb")


def ascii_text(length: int) -> TypeEngine[Any]:
    """Keys and ids, compared byte by byte."""
    precise = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return _on_mariadb(sa.String(length), precise)


def text(length: int) -> TypeEngine[Any]:
    """People's words, compared byte by byte, spaces at the end included."""
    precise = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    return _on_mariadb(sa.String(length), precise)


#: A number that grows with the store; SQLite counts up only an INTEGER.
BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG: Final = _on_mariadb(sa.Text(), mysql.LONGTEXT(charset="utf8mb4"))
TIME: Final = _on_mariadb(sa.DateTime(), mysql.DATETIME(fsp=6))
REAL: Final = _on_mariadb(sa.Float(), mysql.DOUBLE(asdecimal=False))


def key(name: str, type_: TypeEngine[Any] = BIG, *, counts_up: bool = False) -> sa.Column[Any]:
    """A column of the primary key."""
    return sa.Column(name, type_, primary_key=True, autoincrement=counts_up, nullable=False)


def required(name: str, type_: TypeEngine[Any]) -> sa.Column[Any]:
    """A column that every row fills in."""
    return sa.Column(name, type_, nullable=False)


def optional(name: str, type_: TypeEngine[Any]) -> sa.Column[Any]:
    """A column that may be null."""
    return sa.Column(name, type_, nullable=True)


def number(name: str, default: int = 0) -> sa.Column[Any]:
    """A count, never null."""
    return sa.Column(name, sa.Integer(), nullable=False, server_default=str(default))


def flag(name: str) -> sa.Column[Any]:
    """A yes or no, no by default."""
    return sa.Column(name, sa.Boolean(), nullable=False, server_default="0")


def create_table(name: str, *columns: sa.Column[Any], sqlite_autoincrement: bool = False) -> None:
    """Create a table, unless a run of this migration that was killed has done so.

    `sqlite_autoincrement`: the id of a row that was deleted is never given again.
    """
    op.create_table(
        name,
        *columns,
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        sqlite_autoincrement=sqlite_autoincrement,
    )


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column, unless a run of this migration that was killed has done so."""
    if column.name not in _columns(table):
        op.add_column(table, column)


def drop_column(table: str, name: str) -> None:
    """Drop a column, unless it is gone already."""
    if name in _columns(table):
        op.drop_column(table, name)


def _columns(table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def create_index(name: str, table: str, *columns: str) -> None:
    """Create an index, unless it is there already."""
    op.create_index(name, table, columns, if_not_exists=True)


def create_unique_index(name: str, table: str, *columns: str) -> None:
    """Create an index of values that no two rows share, unless it is there already."""
    op.create_index(name, table, columns, unique=True, if_not_exists=True)


def replace_index(name: str, table: str, *columns: str) -> None:
    """Give an index other columns, unless it has them already."""
    indexes = {one["name"]: one for one in sa.inspect(op.get_bind()).get_indexes(table)}
    if name in indexes and indexes[name]["column_names"] != list(columns):
        drop_index(name, table)
    create_index(name, table, *columns)


def add_row(table: str, **values: Any) -> None:
    """Add a row, `id` among its values, unless there is one with this id."""
    rows = sa.table(table, *(sa.column(name) for name in values))
    found = op.get_bind().scalar(sa.select(sa.func.count()).where(rows.c.id == values["id"]))
    if not found:
        op.execute(sa.insert(rows).values(**values))


def drop_table(name: str) -> None:
    """Drop a table and its indexes, unless it is gone already."""
    op.drop_table(name, if_exists=True)


def drop_index(name: str, table: str) -> None:
    """Drop an index, unless it is gone already."""
    op.drop_index(name, table, if_exists=True)
