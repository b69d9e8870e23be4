"""The vocabulary of DANE, and both ends of its wire. No database, no web server here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dane_core.client import Client
    from dane_core.outcome import Done, Failed, Outcome, Refused
    from dane_core.spec import JobSpec
    from dane_core.worker.context import TaskContext
    from dane_core.worker.worker import Worker

__all__ = ["Client", "Done", "Failed", "JobSpec", "Outcome", "Refused", "TaskContext", "Worker"]

# Looked up on first use: importing dane_core loads neither the broker's library nor a web client.
_HOMES: Final = {
    "Client": "dane_core.client",
    "Done": "dane_core.outcome",
    "Failed": "dane_core.outcome",
    "JobSpec": "dane_core.spec",
    "Outcome": "dane_core.outcome",
    "Refused": "dane_core.outcome",
    "TaskContext": "dane_core.worker.context",
    "Worker": "dane_core.worker.worker",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)
