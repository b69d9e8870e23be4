"""The rules of the house that no linter knows."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
FILES: Final = sorted(
    path
    for top in ROOT.iterdir()
    if not top.name.startswith(".")
    and top.name not in ("venv", "dane-data", "dane-demo", "build", "dist")
    for path in ([top] if top.is_file() else top.rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
)

#: Libraries that take long to load, or that a worker's machine may not have.
HEAVY: Final = ("aio_pika", "aiormq", "fastapi", "httpx", "pydantic", "sqlalchemy", "starlette")
#: Names that say nothing of what is inside.
EMPTY_NAMES: Final = ("common", "helper", "manager", "misc", "util")


@pytest.mark.parametrize("module", ["dane_core", "dane_core.outcome", "dane_core.states"])
def test_the_vocabulary_loads_none_of_the_heavy_libraries(module: str) -> None:
    """Whoever needs one of them pays for it, and nobody else."""
    script = f"import sys, {module}; print(*sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert set(HEAVY).isdisjoint(done.stdout.split())


def test_the_command_starts_without_a_broker_a_database_or_the_web() -> None:
    """`dane --help` is answered at once."""
    script = "import sys, dane_core.cli; dane_core.cli.build(); print(*sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert set(HEAVY).isdisjoint(done.stdout.split())


def test_no_file_has_a_name_that_says_nothing() -> None:
    """A room that is called `utils` has no story, and everything moves in."""
    stems = {path: path.stem.lower() for path in FILES}

    empty = [path for path, stem in stems.items() if any(name in stem for name in EMPTY_NAMES)]
    bases = [path for path, stem in stems.items() if stem.startswith("base_")]

    assert empty + bases == []


def test_every_module_says_what_it_is_for() -> None:
    """In a first sentence."""
    modules = [path for path in FILES if path.suffix == ".py" and path.stat().st_size]
    docs = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in modules}

    assert [path for path, doc in docs.items() if not doc] == []
    assert [path for path, doc in docs.items() if doc.split("\n\n")[0][-1] not in ".:"] == []


def test_every_module_is_in_a_room() -> None:
    """Python stands in the packages of the drawing, and nowhere else."""
    rooms = {path.relative_to(ROOT).parts[0] for path in FILES if path.suffix == ".py"}

    assert rooms <= {"dane_core", "dane_server", "workers", "migrations", "benchmarks", "tests"}
