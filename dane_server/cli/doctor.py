"""`dane doctor`: whether store, broker and workers agree, and making them."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dane_core.cli.terminal import SERVICE, AsJson, Config, complain, print_json
from dane_core.errors import StoreTaken, Unreachable
from dane_server.cli.serve import needing, settings_for

if TYPE_CHECKING:
    from dane_core.exchange.base import Exchange
    from dane_server.runner.checks import Finding, Sighting
    from dane_server.runner.doctor import Doctor
    from dane_server.settings import ServerSettings

_LEFT: Final = 1
_UNREACHABLE: Final = 3


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SERVICE)(doctor)


def doctor(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired.")] = False,
    replay_dead: Annotated[
        bool,
        typer.Option("--replay-dead", help="Send reports that were parked back to be recorded."),
    ] = False,
    between: Annotated[
        float,
        typer.Option(min=0.0, max=60.0, help="Seconds between the two looks that are compared."),
    ] = 2.0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare store, broker and workers, and say what does not agree.

    Works beside running servers and without any. Exits with 0 when all agrees or was repaired,
    1 when something is left, 3 when store or broker cannot be reached.
    """
    settings = settings_for(config)
    with needing("server"):
        from dane_server import app  # noqa: F401 - are its libraries there?

    visit = Visit(between=between, fix=fix, replay_dead=replay_dead)
    try:
        asyncio.run(visit.pay(settings))
    except StoreTaken:
        asyncio.run(visit.ask_server(settings))
    visit.tell(as_json=as_json)
    raise typer.Exit(visit.code)


@dataclass
class Visit:
    """One examination, and what there is to tell of it."""

    between: float
    fix: bool = False
    replay_dead: bool = False
    unreachable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replayed: list[str] = field(default_factory=list)
    divergences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def code(self) -> int:
        """The exit code."""
        if self.unreachable:
            return _UNREACHABLE
        return _LEFT if any(not one["repaired"] for one in self.divergences) else 0

    async def pay(self, settings: "ServerSettings") -> None:
        """Examine store and broker, as far as they can be reached. Raises: StoreTaken."""
        from dane_server.app import open_doctor

        async with AsyncExitStack() as stack:
            exchange = await self._exchange(stack, settings)
            try:
                examined = await stack.enter_async_context(open_doctor(settings, exchange))
                await self._examine(examined)
            except Unreachable as fault:
                self.unreachable.append(str(fault))
                await self._examine_broker(settings, exchange)
            if self.replay_dead:
                await self._replay(settings, exchange)

    async def ask_server(self, settings: "ServerSettings") -> None:
        """Tell what the server that holds the SQLite file has found last."""
        import httpx

        url = f"{settings.api_url}/DANE/doctor"
        self.notes.append(
            f"a running server uses this store, so it was asked for its own checks: {url}"
        )
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
                answer = (await client.get(url)).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as fault:
            self.unreachable.append(
                f"{url} does not answer ({type(fault).__name__} {fault}): set DANE.API_URL, or "
                "stop the server that uses the file"
            )
            return
        self.notes.append(f"its last round ended at {answer['checked_at'] or 'no time yet'}")
        if self.fix or self.replay_dead:
            self.notes.append("it repairs by itself what is safe; stop it to repair the rest")
        self.divergences = answer["divergences"]

    def tell(self, *, as_json: bool) -> None:
        """Print everything."""
        if as_json:
            print_json(
                {
                    "divergences": self.divergences,
                    "unreachable": self.unreachable,
                    "replayed": self.replayed,
                    "notes": self.notes,
                }
            )
            return
        for line in self.unreachable:
            complain(line)
        for line in (*self.notes, *self.replayed):
            typer.echo(line)
        for one in self.divergences:
            mark = "repaired" if one["repaired"] else "to be done"
            typer.echo(f"{one['check']}: {one['sentence']}\n  {mark}: {one['advice']}")
        if not self.divergences:
            typer.echo("nothing found" if self.unreachable else "all agrees")

    # --- examining ----------------------------------------------------------------------

    async def _exchange(
        self, stack: AsyncExitStack, settings: "ServerSettings"
    ) -> "Exchange | None":
        if settings.exchange_url.startswith("memory:"):
            self.notes.append("there is no broker: the queues are in the server's own memory")
            return None
        from dane_core.exchange.amqp import connect

        opened = connect(
            settings.exchange_url, name="dane-doctor", task_exchange=settings.RABBITMQ.EXCHANGE
        )
        try:
            return await stack.enter_async_context(opened)
        except Unreachable as fault:
            self.unreachable.append(str(fault))
            return None

    async def _examine(self, examined: "Doctor") -> None:
        findings = await examined.examine_schema()
        if not findings:
            before = await examined.see()
            await asyncio.sleep(self.between)
            findings = [*await self._compare(examined, before), *await examined.examine_jobs()]
        for finding in findings:
            self._note(finding, repaired=self.fix and await self._repair(examined, finding))

    async def _compare(self, examined: "Doctor", before: "Sighting") -> "list[Finding]":
        now = await examined.see(before)
        if (rest := examined.proof_takes(now, before)) > 0:
            complain(f"a queue may have lost messages: looking again in {rest:.0f} s, to be sure")
            await asyncio.sleep(rest)
            now = await examined.see(before)
        return examined.judge(now, before)

    async def _repair(self, examined: "Doctor", finding: "Finding") -> bool:
        try:
            return await examined.repair(finding)
        except Unreachable as fault:
            self.unreachable.append(str(fault))
            return False

    async def _examine_broker(
        self, settings: "ServerSettings", exchange: "Exchange | None"
    ) -> None:
        if exchange is None:
            return
        from dane_server.runner.doctor import examine_broker

        for finding in await examine_broker(exchange, settings.RABBITMQ.RESPONSE_QUEUE):
            self._note(finding, repaired=False)

    async def _replay(self, settings: "ServerSettings", exchange: "Exchange | None") -> None:
        if exchange is None:
            return
        from dane_server.runner.doctor import replay_dead

        try:
            async for told in replay_dead(exchange, settings.RABBITMQ.RESPONSE_QUEUE):
                self.replayed.append(told)
        except Unreachable as fault:
            self.unreachable.append(str(fault))

    def _note(self, finding: "Finding", *, repaired: bool) -> None:
        self.divergences.append(
            {
                "check": finding.check.value,
                "subject": finding.subject,
                "ids": list(finding.ids),
                "sentence": finding.sentence,
                "advice": finding.advice,
                "repaired": repaired,
            }
        )
