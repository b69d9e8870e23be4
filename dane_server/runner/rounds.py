"""The doctor's rounds: the checks, all the time, by one server at a time."""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from dane_core.errors import Unreachable
from dane_server.metrics import Metrics
from dane_server.runner.checks import Finding, Repair, Sighting
from dane_server.runner.doctor import Doctor
from dane_server.storage.bulletin import Bulletin, Divergence
from dane_server.storage.turns import Turns
from dane_server.supervise import Stopping

logger = logging.getLogger(__name__)

#: What is repaired without being asked for. The sweeper does the rest of what is safe, every few
#: seconds; what removes rows is for a person to decide: docs/decisions/0013.
BY_ITSELF: Final = frozenset({Repair.RECOUNT, Repair.RING, Repair.ROUTE, Repair.LEASE, Repair.STOP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of checks found."""

    findings: Sequence[Finding]
    repaired: Sequence[Finding]


class Rounds:
    """Goes round, counts what it finds, says it once, and repairs what is safe to repair."""

    def __init__(
        self,
        *,
        doctor: Doctor,
        turns: Turns,
        bulletin: Bulletin,
        metrics: Metrics,
        every: timedelta,
        stopping: Stopping | None = None,
    ) -> None:
        self._stopping = stopping or Stopping()
        self._doctor = doctor
        self._turns = turns
        self._bulletin = bulletin
        self._metrics = metrics
        self._every = every
        self._before: Sighting | None = None
        self._known: frozenset[tuple[str, str]] = frozenset()

    async def run(self) -> None:
        """Go round until told to stop."""
        while True:
            # Jittered, so that several servers share the turns; and nothing at the very start,
            # when whatever a crash has left is being put right.
            pause = self._every.total_seconds() * random.uniform(0.8, 1.2)  # noqa: S311
            async with self._stopping.idle():
                await asyncio.sleep(pause)
            async with self._turns.take("check") as ours:
                if ours:
                    await self.go_round()
                else:
                    self._before = None  # another server's turn: what we saw is too old

    async def go_round(self) -> Round:
        """Make every check once; what one moment does not prove, against the round before."""
        doctor = self._doctor
        findings = await doctor.examine_schema()
        if not findings:
            now = await doctor.see(self._before)
            if self._before is not None:
                findings += doctor.judge(now, self._before)
            self._before = now
            findings += await doctor.examine_some_jobs()
        self._tell(findings)
        repaired = [finding for finding in findings if await self._repair(finding)]
        await self._bulletin.tell_round([_shown(one, one in repaired) for one in findings])
        return Round(findings=findings, repaired=repaired)

    def _tell(self, findings: Sequence[Finding]) -> None:
        """Count and log what was not there in the round before."""
        for finding in findings:
            if (finding.check.value, finding.subject) in self._known:
                continue
            self._metrics.divergences.labels(finding.check.value).inc()
            logger.warning("divergence (%s): %s; %s", *_words(finding))
        self._known = frozenset((finding.check.value, finding.subject) for finding in findings)

    async def _repair(self, finding: Finding) -> bool:
        if finding.repair not in BY_ITSELF:
            return False
        try:
            done = await self._doctor.repair(finding)
        except Unreachable as fault:
            logger.warning("%s could not be repaired: %s", finding.subject, fault)
            return False
        self._metrics.repairs.labels(finding.check.value).inc()
        return done


def _shown(finding: Finding, repaired: bool) -> Divergence:  # noqa: FBT001
    return Divergence(
        check=finding.check.value,
        subject=finding.subject,
        ids=finding.ids,
        sentence=finding.sentence,
        advice=finding.advice,
        repaired=repaired,
    )


def _words(finding: Finding) -> tuple[str, str, str]:
    todo = finding.advice if finding.repair in BY_ITSELF else f"to be done: {finding.advice}"
    return finding.check.value, finding.sentence, todo
