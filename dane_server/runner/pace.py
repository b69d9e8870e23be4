"""How much and how often: the runner's numbers in one place."""

from dataclasses import dataclass, field
from datetime import timedelta

from dane_server.runner.backlog import MostOpen
from dane_server.storage.retention import Keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Starting values, to be set by measurement."""

    window: int = 1000  # messages of one key in the exchange at most; the store keeps the rest
    batch: int = 500  # tasks claimed, or answers recorded, in one transaction at most
    lease: timedelta = timedelta(seconds=15)  # claimed, not confirmed: claimed again after this
    sweep: timedelta = timedelta(seconds=5)  # somebody looks at what is due at least this often
    route_again: timedelta = timedelta(seconds=30)  # try an unroutable task again
    silence: timedelta = timedelta(seconds=60)  # a worker not heard of for this long is gone
    patience: timedelta = timedelta(seconds=60)  # a lease, until its worker names another
    starts: int = 3  # a task that has ended this many workers fails
    overtime: timedelta = timedelta(seconds=35)  # after its timeout an attempt is its worker's
    lost_after: timedelta = timedelta(seconds=30)  # between two looks at a queue that lacks tasks
    cancel_grace: timedelta = timedelta(seconds=10)  # then what was cancelled is ended by force
    horizon: timedelta = timedelta(hours=1)  # what lies in a queue is looked at after this
    ageing: timedelta = timedelta(seconds=300)  # what waits so long counts one more; 0: never
    check: timedelta = timedelta(seconds=60)  # between two rounds of the doctor
    most_open: MostOpen = field(default_factory=MostOpen)  # above it no jobs are taken in
    keep: Keep = field(default_factory=Keep)  # what is removed after how long
