"""What a worker class says of itself, and what is found wrong with one before it serves."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from dane_core import TaskContext, Worker
from dane_core.errors import BadWorker
from dane_core.worker.discover import (
    find_workers,
    installed_keys,
    load_origin,
    origin_of,
)
from dane_core.worker.worker import check_worker, offer_of, place_of
from tests.core.zoo import Tame


class Sizes(Worker):
    """Size of the source
    file, in a unit.

    And more that nobody sees in a list.
    """

    key = "SIZES"
    types = ("video", "image")
    version = "1.2"

    class Args(BaseModel):
        unit: Literal["B", "kB"] = "B"

    async def work(self, task: TaskContext, args: Args) -> None: ...


def test_an_offer_says_what_servers_and_people_need() -> None:
    offer = offer_of(Sizes)

    assert (offer.key, offer.types, offer.version) == ("SIZES", ("video", "image"), "1.2")
    assert offer.description == "Size of the source file, in a unit."
    assert offer.args_schema is not None
    assert offer.args_schema["properties"]["unit"]["enum"] == ["B", "kB"]


def test_the_schema_refuses_unknown_arguments_unless_the_model_wants_them() -> None:
    """A misspelt argument that is ignored costs hours of computing the wrong thing."""

    class Lax(Sizes):
        class Args(BaseModel):
            model_config = ConfigDict(extra="allow")

    strict, lax = (offer_of(worker).args_schema or {} for worker in (Sizes, Lax))

    assert strict["additionalProperties"] is False
    assert lax["additionalProperties"] is True


def test_a_plain_work_is_done_in_a_process_and_an_async_one_on_the_loop() -> None:
    assert place_of(Tame) == "process"
    assert place_of(Sizes) == "loop"


class NoKey(Worker):
    def work(self, task: TaskContext) -> None: ...


class LowerKey(NoKey):
    key = "filesize"


class DottedKey(NoKey):
    key = "FILE.SIZE"


class OneType(NoKey):
    key = "K"
    types = "video"


class UpperType(NoKey):
    key = "K"
    types = ("Video",)


class NoWork(Worker):
    key = "K"


class ArgsNotTaken(Worker):
    key = "K"

    class Args(BaseModel): ...

    def work(self, task: TaskContext) -> None: ...


class ArgsNotMade(Worker):
    key = "K"

    def work(self, task: TaskContext, args: Any) -> None: ...


class ArgsNoModel(NoKey):
    key = "K"
    Args: ClassVar[Any] = dict


class Nowhere(NoKey):
    key = "K"
    run_in: ClassVar[Any] = "cloud"


class AsyncThread(Worker):
    key = "K"
    run_in = "thread"

    async def work(self, task: TaskContext) -> None: ...


class PlainLoop(NoKey):
    key = "K"
    run_in = "loop"


class AsyncSetup(NoKey):
    key = "K"

    async def setup(self) -> None: ...


@pytest.mark.parametrize(
    ("worker", "hint"),
    [
        (NoKey, "no key"),
        (LowerKey, "'FILESIZE'"),
        (DottedKey, "FILE.SIZE"),
        (OneType, "types is a list"),
        (UpperType, "'Video'"),
        (NoWork, "no method work"),
        (ArgsNotTaken, "work(self, task, args)"),
        (ArgsNotMade, "work(self, task)"),
        (ArgsNoModel, "class Args(BaseModel)"),
        (Nowhere, "'cloud'"),
        (AsyncThread, 'run_in = "process"'),
        (PlainLoop, "async def work"),
        (AsyncSetup, "plain def setup"),
    ],
)
def test_what_is_wrong_with_a_worker_is_said_with_its_name_and_the_way_out(
    worker: type[Worker], hint: str
) -> None:
    with pytest.raises(BadWorker) as refused:
        check_worker(worker)

    assert worker.__qualname__ in str(refused.value)
    assert hint in str(refused.value)


# --- finding -----------------------------------------------------------------------------------

HELLO = """
from neighbour import GREETING
from dane_core import Worker

class Hello(Worker):
    key = "HELLO"
    def work(self, task):
        return {"greeting": GREETING}

class Goodbye(Hello):
    key = "GOODBYE"
"""


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text('GREETING = "hi"\n')
    file = tmp_path / "hello_worker.py"
    file.write_text(HELLO)
    return file


def test_a_file_gives_every_worker_in_it_and_can_import_its_neighbours(hello: Path) -> None:
    assert [worker.key for worker in find_workers(str(hello))] == ["HELLO", "GOODBYE"]


def test_a_file_and_a_class_give_that_class(hello: Path) -> None:
    assert [worker.key for worker in find_workers(f"{hello}:Goodbye")] == ["GOODBYE"]


def test_a_file_read_twice_gives_the_same_classes(hello: Path) -> None:
    assert list(find_workers(str(hello))) == list(find_workers(str(hello)))


def test_a_module_and_a_class_give_that_class() -> None:
    assert list(find_workers("tests.core.zoo:Tame")) == [Tame]


def test_a_module_alone_gives_its_own_workers_and_not_those_it_imports() -> None:
    keys = {worker.key for worker in find_workers("tests.core.zoo")}

    assert {"TAME", "WILD"} <= keys
    assert "" not in keys


def test_a_module_beside_us_is_found(hello: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hello.parent)
    monkeypatch.syspath_prepend(str(hello.parent))

    assert [worker.key for worker in find_workers("hello_worker:Hello")] == ["HELLO"]


def test_installed_workers_are_found_by_key_in_any_case() -> None:
    assert {"FILESIZE", "DOWNLOAD"} <= set(installed_keys())
    assert [worker.key for worker in find_workers("filesize")] == ["FILESIZE"]


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("FILESISE", "did you mean 'FILESIZE'"),
        ("tests.core.zoo:Tamed", "did you mean 'Tame'"),
        ("tests.core.zoo:Path", "not a subclass"),
        ("tests.core.nothing:Tame", "tests.core.nothing"),
        ("no_such_package.thing:Tame", "no_such_package"),
        ("dane_core.states", "no subclass of dane_core.Worker"),
        ("nowhere/hello.py", "no file"),
        ("nowhere/hello.py:Hello", "no file"),
    ],
)
def test_what_cannot_be_found_is_said_with_what_is_there(target: str, hint: str) -> None:
    with pytest.raises(BadWorker, match=hint):
        find_workers(target)


def test_a_misspelt_file_is_guessed(hello: Path) -> None:
    with pytest.raises(BadWorker, match=r"did you mean 'hello_worker\.py'"):
        find_workers(str(hello.with_name("helo_worker.py")))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("import no_such_library", "no_such_library"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("from dane_core import Worker\nclass W(Worker): ...", "W has no key"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_fault(
    tmp_path: Path, text: str, hint: str
) -> None:
    file = tmp_path / "broken_worker.py"
    file.write_text(text)

    with pytest.raises(BadWorker, match=hint) as refused:
        find_workers(str(file))

    assert "broken_worker.py" in str(refused.value)


# --- finding again, in another process ------------------------------------------------------------


def test_a_class_from_a_file_is_found_again_where_its_module_is_unknown(
    hello: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = find_workers(f"{hello}:Hello")
    origin = origin_of(worker)
    monkeypatch.delitem(sys.modules, origin.module)

    again = load_origin(origin)

    assert again is not worker
    assert again.key == "HELLO"


def test_a_class_made_in_a_function_is_refused_with_the_way_out() -> None:
    class Local(Worker):
        key = "LOCAL"

        def work(self, task: TaskContext) -> None: ...

    with pytest.raises(BadWorker, match='run_in = "thread"'):
        origin_of(Local)


def test_importing_the_worker_class_loads_no_broker_and_no_web_client() -> None:
    """A child process starts in the time its imports take."""
    heavy = ("aio_pika", "httpx", "typer", "sqlalchemy")
    code = f"import sys, dane_core.worker.child; print([x for x in {heavy} if x in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    assert loaded.stdout.strip() == b"[]"
