"""Find worker classes by what people call them, and by where a child process finds them again."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from dane_core.errors import BadWorker
from dane_core.worker.worker import Worker, check_worker

#: Where installed packages name their workers: KEY = "package.module:Class".
ENTRY_POINTS: Final = "dane.workers"


def find_workers(target: str) -> Sequence[type[Worker]]:
    """The worker classes a target means, each fit to be served.

    A target is `package.module:Class`, `package.module`, `path/file.py`, `path/file.py:Class`,
    or the key of an installed worker. Without a class it means every worker in the module.
    Raises: BadWorker, which says what was looked for and what is there instead.
    """
    place, _, name = target.partition(":")
    if place.endswith(".py") or "/" in place:
        module = _load_file(Path(place))
    elif name or "." in place or (not _installed(place) and _is_importable(place)):
        module = _import(place)
    else:
        return [installed_worker(place)]
    return [_class_in(module, name)] if name else _classes_in(module)


def installed_worker(key: str) -> type[Worker]:
    """The worker that an installed package offers for a key. Raises: BadWorker."""
    found = _installed(key)
    if found is None:
        known = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
        raise BadWorker(
            f"no installed worker is called {key!r}{_did_you_mean(key.upper(), known)} "
            f"(installed: {', '.join(sorted(known)) or 'none'}; a file is path/file.py)"
        )
    place, _, name = found.value.partition(":")
    return _class_in(_import(place.strip()), name.strip())


def installed_keys() -> Sequence[str]:
    """The keys of all installed workers, sorted."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a worker class comes from, so that another process can find it."""

    module: str
    file: str | None
    name: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def origin_of(worker: type[Worker]) -> Origin:
    """Where a child process finds this class. Raises: BadWorker, if it cannot."""
    name = worker.__qualname__
    if "<locals>" in name:
        raise BadWorker(
            f"{name} is made inside a function, where a child process cannot find it: "
            'move it to the module, or give it  run_in = "thread"'
        )
    module = sys.modules[worker.__module__]
    file = getattr(module, "__file__", None)
    if worker.__module__ != "__main__":
        return Origin(module=worker.__module__, file=file, name=name)
    if module.__spec__ is not None:  # python -m package.module
        return Origin(module=module.__spec__.name, file=file, name=name)
    if file is None:
        raise BadWorker(
            f"{name} was typed in, and a child process cannot find it: "
            'put it in a file, or give it  run_in = "thread"'
        )
    return Origin(module=_file_module(Path(file)), file=file, name=name)


def load_origin(origin: Origin) -> type[Worker]:
    """The class at its origin, in a process that may not have imported it yet."""
    spec = _spec(origin.module)
    if spec is not None and (origin.file is None or spec.origin == origin.file):
        found: Any = importlib.import_module(origin.module)
    elif origin.file is not None:
        found = _run_file(Path(origin.file), origin.module)
    else:
        raise BadWorker(f"module {origin.module} cannot be imported")
    for part in origin.name.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise BadWorker(f"{origin.name} in {origin.module} is not a worker")
    return found


def _installed(key: str) -> EntryPoint | None:
    return next(iter(entry_points(group=ENTRY_POINTS, name=key.upper())), None)


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if fault.name is None or not f"{name}.".startswith(f"{fault.name}."):
            raise _broken(name, fault) from fault
        hint = f" (for a file: {name}.py)" if Path(f"{name}.py").exists() else ""
        raise BadWorker(f"there is no module {fault.name!r}{hint}") from None
    except Exception as fault:
        raise _broken(name, fault) from fault


def _is_importable(name: str) -> bool:
    return name.isidentifier() and (_spec(name) is not None or Path(f"{name}.py").exists())


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _load_file(path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        near = [str(other.name) for other in path.parent.glob("*.py")]
        raise BadWorker(f"there is no file {path}{_did_you_mean(path.name, near)}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as for a script, its neighbours can be imported
    name = _file_module(path)
    try:
        return sys.modules.get(name) or _run_file(path, name)
    except BadWorker:
        raise
    except Exception as fault:
        raise _broken(str(path), fault) from fault


def _file_module(path: Path) -> str:
    """A module name no installed module has, the same in every process."""
    return f"dane_worker_{path.stem}_{sha256(str(path.absolute()).encode()).hexdigest()[:8]}"


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadWorker(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _class_in(module: ModuleType, name: str) -> type[Worker]:
    found = getattr(module, name, None)
    if found is None:
        known = [worker.__name__ for worker in _workers_of(module)]
        raise BadWorker(f"{_title(module)} has no class {name!r}{_did_you_mean(name, known)}")
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise BadWorker(f"{name} in {_title(module)} is not a subclass of dane_core.Worker")
    check_worker(found)
    return found


def _classes_in(module: ModuleType) -> Sequence[type[Worker]]:
    workers = [worker for worker in _workers_of(module) if worker.key]
    if not workers:
        near = _workers_of(module)
        hint = f" ({near[0].__name__} has no key)" if near else ""
        raise BadWorker(f"{_title(module)} has no subclass of dane_core.Worker{hint}")
    for worker in workers:
        check_worker(worker)
    return workers


def _workers_of(module: ModuleType) -> list[type[Worker]]:
    classes: Iterable[Any] = vars(module).values()
    return [
        found
        for found in classes
        if isinstance(found, type)
        and issubclass(found, Worker)
        and found.__module__ == module.__name__
        and not inspect.isabstract(found)
    ]


def _title(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return str(file) if module.__name__.startswith("dane_worker_") else module.__name__


def _broken(place: str, fault: Exception) -> BadWorker:
    line = traceback.extract_tb(fault.__traceback__)[-1]
    where = f" ({line.filename}, line {line.lineno})" if line.lineno else ""
    return BadWorker(f"{place} could not be imported: {type(fault).__name__}: {fault}{where}")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
