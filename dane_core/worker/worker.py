"""The class people subclass to do one kind of task."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import BaseModel

from dane_core.errors import BadWorker
from dane_core.message import Offer
from dane_core.routing import MEDIA_TYPE, TASK_KEY

RunIn = Literal["loop", "thread", "process"]


class Worker:
    """Does one kind of task. Name its `key`, and write `work`.

    `work` gets a `TaskContext`, and the checked arguments when there is an `Args` model:
    `work(self, task)` or `work(self, task, args)`. What it returns (a dict, a model, nothing)
    is the answer; `Failed` and `Refused` are returned or raised; any other exception fails the
    task with its type and text.

    `async def work` runs on the event loop. A plain `def work` runs in a child process, one
    task at a time, so a crash or a hang costs one attempt; with `run_in = "thread"` it runs in
    a thread, which is cheaper and cannot be stopped. In a thread and on the loop one instance
    does several tasks at once.
    """

    #: The task key: upper-case letters, digits, `_` and `-`.
    key: ClassVar[str] = ""
    #: Media types it takes, as `("video", "image")`; every type if empty.
    types: ClassVar[Sequence[str]] = ()
    run_in: ClassVar[RunIn | None] = None
    #: Of this worker, for people: shown beside its key.
    version: ClassVar[str] = ""
    #: The arguments a task may have. Unknown ones are refused unless the model says otherwise.
    Args: ClassVar[type[BaseModel] | None] = None
    #: What an answer must fit.
    Result: ClassVar[type[BaseModel] | None] = None

    def setup(self) -> Any:
        """Called once in each process before its first task: load the model here."""

    def teardown(self) -> Any:
        """Called once in each process after its last task, unless the process was killed."""

    def work(self, *args: Any, **kwargs: Any) -> Any:
        """Do one task: `work(self, task)`, or `work(self, task, args)` with an `Args` model."""
        raise NotImplementedError


#: Where a task can be done; the first is for `async def work`, the last for a plain `def`.
_PLACES: Final = get_args(RunIn)


def place_of(worker: type[Worker]) -> RunIn:
    """Where the tasks of a worker are done."""
    default: RunIn = "loop" if inspect.iscoroutinefunction(worker.work) else "process"
    return worker.run_in or default


def offer_of(worker: type[Worker]) -> Offer:
    """What servers are told about a worker."""
    return Offer(
        key=worker.key,
        types=tuple(worker.types),
        description=_description(worker),
        args_schema=_args_schema(worker),
        version=worker.version,
    )


def strictness(model: type[BaseModel]) -> Literal["forbid"] | None:
    """How a model treats unknown members: as it says itself, or else by refusing them."""
    return None if model.model_config.get("extra") else "forbid"


def check_worker(worker: type[Worker]) -> None:
    """Find out before any task what is wrong with a worker class. Raises: BadWorker."""
    for find_fault in (_fault_in_names, _fault_in_models, _fault_in_work, _fault_in_place):
        if fault := find_fault(worker):
            raise BadWorker(f"{worker.__qualname__}: {fault}")


def _fault_in_names(worker: type[Worker]) -> str | None:
    if not worker.key:
        return 'it has no key: write for example  key = "FILESIZE"'
    if not TASK_KEY.fullmatch(worker.key):
        hint = f", perhaps {worker.key.upper()!r}" if TASK_KEY.fullmatch(worker.key.upper()) else ""
        return f"key {worker.key!r} should be upper-case letters, digits, '_' and '-'{hint}"
    if isinstance(worker.types, str):
        return f"types is a list: write  types = [{worker.types!r}]"
    for media_type in worker.types:
        if not MEDIA_TYPE.fullmatch(media_type):
            return f"type {media_type!r} should be lower-case letters, digits, '_' and '-'"
    return None


def _fault_in_models(worker: type[Worker]) -> str | None:
    for name in ("Args", "Result"):
        model = getattr(worker, name)
        if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
            return f"{name} should be a pydantic model: write  class {name}(BaseModel)"
    return None


def _fault_in_work(worker: type[Worker]) -> str | None:
    if worker.work is Worker.work:
        return "it has no method work(self, task)"
    expected = ("self", "task", "args") if worker.Args else ("self", "task")
    try:
        inspect.signature(worker.work).bind(*expected)
    except TypeError:
        return f"its method should be work({', '.join(expected)})"
    return None


def _fault_in_place(worker: type[Worker]) -> str | None:
    place = place_of(worker)
    if place not in _PLACES:
        return f"run_in is {place!r}, expected one of {', '.join(_PLACES)}"
    if inspect.iscoroutinefunction(worker.work):
        fault = 'async def work runs on the loop or in a process: write  run_in = "process"'
        return fault if place == "thread" else None
    if place == "loop":
        return "a plain def work would stop the loop: write  async def work"
    if inspect.iscoroutinefunction(worker.setup) or inspect.iscoroutinefunction(worker.teardown):
        return "a plain def work goes with a plain def setup and teardown"
    return None


def _description(worker: type[Worker]) -> str:
    if worker.__doc__ is None:
        return ""
    return " ".join(inspect.cleandoc(worker.__doc__).split("\n\n")[0].split())


def _args_schema(worker: type[Worker]) -> dict[str, Any] | None:
    if worker.Args is None:
        return None
    schema = worker.Args.model_json_schema()
    if strictness(worker.Args):
        schema.setdefault("additionalProperties", False)
    return schema
