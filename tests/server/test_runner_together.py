"""Those who ask at the same time share one question, and nobody gets an answer from before."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from dane_server.runner import together as together_module
from dane_server.runner.together import Together


class Oracle:
    """Answers with the number of the question, when it is let."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.is_asked = asyncio.Event()
        self.lets = asyncio.Event()

    async def __call__(self, keys: Iterable[str]) -> Mapping[str, int]:
        self.asked.append(set(keys))
        self.is_asked.set()
        number = len(self.asked)
        await self.lets.wait()
        return dict.fromkeys(self.asked[number - 1], number)


async def test_all_who_ask_while_another_is_answered_share_the_next_question() -> None:
    oracle = Oracle()
    together = Together(oracle)
    first = asyncio.create_task(together.of("a"))
    await oracle.is_asked.wait()
    others = [asyncio.create_task(together.of(key)) for key in "abc"]
    await asyncio.sleep(0)
    oracle.lets.set()

    assert await first == {"a": 1}
    assert [(await other)[key] for other, key in zip(others, "abc", strict=True)] == [2, 2, 2]
    assert oracle.asked == [{"a"}, {"a", "b", "c"}]


async def test_who_asks_later_is_told_what_is_then() -> None:
    oracle = Oracle()
    oracle.lets.set()
    together = Together(oracle)

    assert [await together.of("a"), await together.of("a")] == [{"a": 1}, {"a": 2}]


async def test_a_question_that_fails_is_told_to_all_and_asked_again_by_the_next() -> None:
    tries = iter([OSError("away"), None])

    async def ask(keys: Iterable[str]) -> Mapping[str, int]:
        if fault := next(tries):
            raise fault
        return dict.fromkeys(keys, 7)

    together = Together(ask)
    found = await asyncio.gather(together.of("a"), together.of("b"), return_exceptions=True)

    assert [type(one) for one in found] == [OSError, OSError]
    assert await together.of("a") == {"a": 7}


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    oracle = Oracle()
    together = Together(oracle)
    impatient, patient = (asyncio.create_task(together.of(key)) for key in "ab")
    await oracle.is_asked.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    oracle.lets.set()

    assert await patient == {"a": 1, "b": 1}


async def test_a_question_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come later would wait twice as long as anything may take."""
    monkeypatch.setattr(together_module, "_PATIENCE", 0.01)
    oracle = Oracle()
    together = Together(oracle)
    first = asyncio.create_task(together.of("a"))
    await oracle.is_asked.wait()
    oracle.is_asked.clear()

    second = asyncio.create_task(together.of("b"))
    await asyncio.wait_for(oracle.is_asked.wait(), 5)

    assert oracle.asked == [{"a"}, {"b"}]
    oracle.lets.set()
    await asyncio.gather(first, second)
