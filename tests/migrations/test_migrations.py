"""Migrations make exactly the tables of `tables.py`, and unmake them, however often killed."""

import ast
import itertools
import re
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from dane_server.storage import migrate
from dane_server.storage.engine import Store
from dane_server.storage.tables import metadata
from tests.faults.plugin import long
from tests.migrations.inside import Killed, Killer, definition, empty

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
    await empty(store)
    killer = Killer()

    await killer.until_through(lambda: migrate.upgrade(store))

    assert killer.kills > 2 * len(metadata.tables)  # a table, its revision, and indexes
    assert await definition(store) == wanted
    await migrate.check(store)


@long
async def test_a_downgrade_killed_between_any_two_statements_is_completed_by_the_next(
    store: Store,
) -> None:
    await migrate.upgrade(store)
    killer = Killer()

    await killer.until_through(lambda: migrate.downgrade(store))

    assert killer.kills >= 2 * len(metadata.tables)  # a table and its revision
    assert await definition(store) == []
    assert await migrate.revision(store) is None


@long
async def test_a_downgrade_that_was_killed_is_undone_by_an_upgrade(store: Store) -> None:
    """The table may be gone while the store still says that it is there."""
    await migrate.upgrade(store)

    for revision, before in itertools.pairwise([*reversed(_revisions()), "base"]):
        wanted = await definition(store)
        with Killer().at_large(), pytest.raises(Killed):
            await migrate.downgrade(store, before)
        await migrate.upgrade(store, revision)

        assert await definition(store) == wanted
        await migrate.downgrade(store, before)


async def test_an_upgrade_killed_on_sqlite_has_changed_nothing(sqlite: Store) -> None:
    killer = Killer()
    with killer.at_large():
        for _ in range(20):
            with pytest.raises(Killed):
                await migrate.upgrade(sqlite)

    assert await definition(sqlite) == []
    assert await migrate.revision(sqlite) is None


def test_migrations_are_numbered_without_gaps_and_each_follows_the_one_before() -> None:
    follows = [(_assigned(file, "down_revision"), _assigned(file, "revision")) for file in FILES]

    numbers = [f"{number:04}" for number in range(1, len(FILES) + 1)]
    assert follows == list(zip([None, *numbers], numbers, strict=False))
    assert [re.match(r"\d{4}_[a-z_]+\.py$", file.name) and file.name[:4] for file in FILES] == (
        numbers
    )


def test_a_new_migration_begins_behind_the_last_one(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "migrations")

    script = ScriptDirectory(folder).generate_revision("0999", "Add the owner of a job")

    assert script is not None
    assert script.path.endswith("0999_add_the_owner_of_a_job.py")
    assert script.doc == "Add the owner of a job."
    assert script.down_revision == FILES[-1].name[:4]


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
