"""Migrations make exactly the tables of `tables.py`, and unmake them, however often killed."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from dane_server.storage import migrate
from dane_server.storage.engine import Store
from dane_server.storage.tables import metadata
from tests.migrations.inside import definition, empty, killed_after

FOLDER = migrate.find_migrations(Path(migrate.__file__).parents[1])
FILES = sorted((FOLDER / "versions").glob("*.py"))


def _difference(connection: sa.Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def test_after_an_upgrade_autogenerate_finds_nothing_to_do(store: Store) -> None:
    await migrate.upgrade(store)

    async with store.engine.connect() as connection:
        assert await connection.run_sync(_difference) == []


async def test_an_upgrade_makes_the_tables_of_tables_py_to_the_letter(store: Store) -> None:
    """Autogenerate sees neither collations nor the expression behind a status."""
    async with store.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    wanted = await definition(store)
    await empty(store)

    await migrate.upgrade(store)

    assert await definition(store) == wanted


async def test_a_downgrade_leaves_nothing(store: Store) -> None:
    await migrate.upgrade(store)

    await migrate.downgrade(store)

    assert await definition(store) == []
    assert await migrate.revision(store) is None


async def test_each_migration_undoes_what_it_did(store: Store) -> None:
    """An operator may stop at any of them, so each step down is the step up, reversed."""
    seen = {"base": await definition(store)}
    for revision in _revisions():
        await migrate.upgrade(store, revision)
        seen[revision] = await definition(store)

    for revision in [*reversed(_revisions()[:-1]), "base"]:
        await migrate.downgrade(store, revision)

        assert await definition(store) == seen[revision]


def _revisions() -> list[str]:
    return [file.name[:4] for file in FILES]


async def test_an_upgrade_killed_between_any_two_statements_is_completed_by_the_next(
    store: Store,
) -> None:
    """MariaDB commits each statement by itself: nothing may trip over what is there already."""
    await migrate.upgrade(store)
    wanted = await definition(store)

    for statements in itertools.count(1):
        await empty(store)
        with killed_after(statements) as life:
            await migrate.upgrade(store)
        if not life.ended:
            break
        await migrate.upgrade(store)

        assert await definition(store) == wanted
        await migrate.check(store)


async def test_a_downgrade_killed_between_any_two_statements_is_completed_by_the_next(
    store: Store,
) -> None:
    for statements in itertools.count(1):
        await migrate.upgrade(store)
        with killed_after(statements) as life:
            await migrate.downgrade(store)
        if not life.ended:
            break
        await migrate.downgrade(store)

        assert await definition(store) == []
        assert await migrate.revision(store) is None


async def test_a_downgrade_killed_between_any_two_statements_is_undone_by_an_upgrade(
    store: Store,
) -> None:
    """The table may be dropped while the store still says that it is there."""
    await migrate.upgrade(store)
    wanted = await definition(store)

    for statements in itertools.count(1):
        with killed_after(statements) as life:
            await migrate.downgrade(store)
        if not life.ended:
            break
        await migrate.upgrade(store)

        assert await definition(store) == wanted


async def test_an_upgrade_killed_on_sqlite_has_changed_nothing(sqlite: Store) -> None:
    with killed_after(20) as life:
        await migrate.upgrade(sqlite)

    assert life.ended
    assert await definition(sqlite) == []
    assert await migrate.revision(sqlite) is None


def test_migrations_are_numbered_without_gaps_and_each_follows_the_one_before() -> None:
    follows = [(_assigned(file, "down_revision"), _assigned(file, "revision")) for file in FILES]

    numbers = [f"{number:04}" for number in range(1, len(FILES) + 1)]
    assert follows == list(zip([None, *numbers], numbers, strict=False))
    assert [re.match(r"\d{4}_[a-z_]+\.py$", file.name) and file.name[:4] for file in FILES] == (
        numbers
    )


def _assigned(file: Path, name: str) -> object:
    for statement in ast.parse(file.read_text()).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Constant(value=value)):
                if found == name:
                    return value
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_migration_says_in_one_sentence_what_it_does(file: Path) -> None:
    said = ast.get_docstring(ast.parse(file.read_text())) or ""

    assert re.fullmatch(r"[A-Z][^.\n]+\.", said)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_migration_does_not_follow_later_changes_of_the_tables(file: Path) -> None:
    """A migration is history: what it did to stores out there cannot change any more."""
    assert "dane_core" not in file.read_text()
    assert "storage.tables" not in file.read_text()
