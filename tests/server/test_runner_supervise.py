"""What keeps the loops running, and what ends them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from dane_core.errors import ExchangeUnreachable, StoreUnreachable
from dane_server.runner.bell import LocalBell
from dane_server.supervise import Stopped, Stopping, keep_running


class Service:
    """Ends in one way after another, then runs until it is cancelled."""

    def __init__(self, *ends: BaseException | None) -> None:
        self._ends = list(ends)
        self.runs = 0
        self.up = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        if not self._ends:
            self.up.set()
            await asyncio.Event().wait()
        end = self._ends.pop(0)
        if end is not None:
            raise end


async def kept(run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    return asyncio.create_task(keep_running("service", run, pause=0.0))


@pytest.mark.parametrize(
    "end",
    [
        None,
        ValueError("a bug"),
        ExchangeUnreachable("gone"),
        StoreUnreachable("gone"),
        asyncio.CancelledError(),
        ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    ],
    ids=["returns", "bug", "exchange", "store", "foreign cancellation", "group"],
)
async def test_a_service_that_ends_is_started_again(end: BaseException | None) -> None:
    """aio-pika lets its users be cancelled by nobody when a connection breaks."""
    service = Service(end, end)

    keeping = await kept(service.run)
    await asyncio.wait_for(service.up.wait(), 5)

    assert service.runs == 3
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


async def test_a_cancellation_that_was_meant_ends_it() -> None:
    service = Service()
    keeping = await kept(service.run)
    await service.up.wait()

    keeping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(keeping, 5)
    assert service.runs == 1


async def test_a_cancellation_during_the_pause_ends_it() -> None:
    ended = asyncio.Event()

    async def run() -> None:
        ended.set()

    keeping = asyncio.create_task(keep_running("service", run, pause=3600))
    await ended.wait()
    keeping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(keeping, 5)


async def test_a_task_group_that_keeps_services_can_be_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    services = [Service(ValueError("x")), Service(asyncio.CancelledError()), Service()]
    async with asyncio.TaskGroup() as group:
        keeping = [
            group.create_task(keep_running("service", one.run, pause=0.0)) for one in services
        ]
        for one in services:
            await asyncio.wait_for(one.up.wait(), 5)
        for each in keeping:
            each.cancel()

    assert [one.runs for one in services] == [2, 2, 1]
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("fault", [None, ValueError("a bug"), StoreUnreachable("gone")])
async def test_what_ends_after_the_word_to_stop_is_not_started_again(
    fault: Exception | None,
) -> None:
    """Whatever it had in hand it ends first; how, is all the same."""
    stopping, busy, go = Stopping(), asyncio.Event(), asyncio.Event()
    ends: list[str] = []

    async def run() -> None:
        busy.set()
        await go.wait()
        ends.append("the batch")
        if fault is not None:
            raise fault
        async with stopping.idle():
            ends.append("more")

    keeping = asyncio.create_task(keep_running("service", run, pause=3600, stopping=stopping))
    await busy.wait()
    stopping.tell()
    go.set()
    await asyncio.wait_for(keeping, 5)

    assert ends == ["the batch"]


async def test_the_word_to_stop_ends_a_pause_and_whatever_is_idle() -> None:
    stopping = Stopping()
    failing = Service(ValueError("x"))
    idle = asyncio.Event()

    async def run() -> None:
        async with stopping.idle():
            idle.set()
            await asyncio.Event().wait()

    keeping = [
        asyncio.create_task(keep_running("pausing", failing.run, pause=3600, stopping=stopping)),
        asyncio.create_task(keep_running("idle", run, stopping=stopping)),
    ]
    await idle.wait()
    stopping.tell()

    await asyncio.wait_for(asyncio.gather(*keeping), 5)
    assert failing.runs == 1


async def test_a_time_limit_inside_an_idle_place_is_not_taken_for_the_word() -> None:
    stopping = Stopping()
    with pytest.raises(TimeoutError):
        async with stopping.idle():
            raise TimeoutError
    stopping.tell()
    with pytest.raises(Stopped):
        async with stopping.idle():
            pytest.fail("nothing is begun after the word")


async def test_what_is_out_of_reach_is_told_in_a_line_and_a_bug_with_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(StoreUnreachable("the database does not answer"), ValueError("a bug"))
    keeping = await kept(service.run)
    await asyncio.wait_for(service.up.wait(), 5)
    keeping.cancel()

    unreachable, bug = caplog.records
    assert (unreachable.levelno, unreachable.exc_info) == (logging.WARNING, None)
    assert "the database does not answer" in unreachable.getMessage()
    assert bug.levelno == logging.ERROR
    assert bug.exc_info is not None


async def test_a_bell_rung_before_anyone_listens_is_heard() -> None:
    bell = LocalBell()
    await bell.ring()
    await bell.ring()

    await asyncio.wait_for(bell.heard(), 5)

    listening = asyncio.create_task(bell.heard())
    await asyncio.sleep(0)
    assert not listening.done()
    await bell.ring()
    await asyncio.wait_for(listening, 5)


async def test_a_cancellation_that_a_library_has_lost_ends_what_is_idle_next() -> None:
    """`asyncio.wait_for` loses one (Python 3.11); the service would then wait for ever."""
    at_work, stopping = asyncio.Event(), Stopping()

    async def serve() -> None:
        at_work.set()
        with suppress(asyncio.CancelledError):  # as the library does
            await asyncio.Event().wait()
        async with stopping.idle():
            await asyncio.Event().wait()

    service = asyncio.create_task(keep_running("a service", serve, stopping=stopping))
    await at_work.wait()

    service.cancel()

    await asyncio.wait({service}, timeout=5)
    assert service.cancelled()
