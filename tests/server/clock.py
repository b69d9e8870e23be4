"""Puts the clock of a database forward or back, for all statements of a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dane_server.storage import functions, text
from dane_server.storage.engine import Store

_MARIADB = "(UTC_TIMESTAMP(6) + INTERVAL {by} SECOND"
_SQLITE = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '{by} seconds'"


@contextmanager
def clock_put(store: Store, by: int) -> Iterator[None]:
    """Have the clock show `by` seconds more than it does; fewer, when that is negative."""

    def seconds(element: Any, compiler: Any, kw: Any) -> str:
        return str(compiler.process(element.clauses, **kw))

    def now(_: Any, __: Any, **___: Any) -> str:
        return _MARIADB.format(by=by) + ")"

    def now_sqlite(_: Any, __: Any, **___: Any) -> str:
        return _SQLITE.format(by=by) + ")"

    def later(element: Any, compiler: Any, **kw: Any) -> str:
        more = f"INTERVAL ROUND({seconds(element, compiler, kw)} * 1000000) MICROSECOND"
        return f"{_MARIADB.format(by=by)} + {more})"

    def later_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
        return f"{_SQLITE.format(by=by)}, {seconds(element, compiler, kw)} || ' seconds')"

    words: dict[Any, dict[str, Any]] = {
        functions.now: {"default": now, "sqlite": now_sqlite},
        functions.later: {"default": later, "sqlite": later_sqlite},
    }
    before = {word: dict(_specs(word)) for word in words}
    try:
        for word, specs in words.items():
            _specs(word).update(specs)
        _forget_statements(store)
        yield
    finally:
        for word, specs in before.items():
            _specs(word).update(specs)
        _forget_statements(store)


def _specs(word: Any) -> dict[str, Any]:
    specs: dict[str, Any] = word._compiler_dispatcher.specs
    return specs


def _forget_statements(store: Store) -> None:
    """What was compiled before has the other clock in it."""
    text.forget_texts()
    for engine in (store._writes, store._reads):
        engine.sync_engine.clear_compiled_cache()
