"""Every way into the store, in one hand."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from dane_server.storage.acts import Acts
from dane_server.storage.bulletin import Bulletin
from dane_server.storage.doctor import Examiner
from dane_server.storage.engine import Store
from dane_server.storage.mending import Mending
from dane_server.storage.quotas import Quotas
from dane_server.storage.reader import Reader
from dane_server.storage.retention import Retention
from dane_server.storage.sweeps import Sweeps
from dane_server.storage.turns import Turns
from dane_server.storage.writer import Writer


@dataclass(frozen=True, slots=True)
class Access:
    """Who reads the store and who writes it, over the same connections."""

    reader: Reader
    writer: Writer
    acts: Acts
    sweeps: Sweeps
    examiner: Examiner
    mending: Mending
    retention: Retention
    turns: Turns
    bulletin: Bulletin
    quotas: Quotas

    @classmethod
    def to(cls, store: Store, *, cancel_grace: timedelta = timedelta(seconds=10)) -> Self:
        return cls(
            Reader(store, cancel_grace=cancel_grace),
            Writer(store),
            Acts(store),
            Sweeps(store),
            Examiner(store),
            Mending(store),
            Retention(store),
            Turns(store),
            Bulletin(store),
            Quotas(store),
        )
