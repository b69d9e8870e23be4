"""Keeps the garbage collector of a long-lived process away from what never becomes garbage."""

import gc


def settle_heap() -> None:
    """Take all that lives by now for permanent: collections no longer walk through it.

    A full one holds every thread up, an event loop too, for as long as it takes: with all
    libraries loaded that was 0.1 s each time. To be called once, when a process is ready.
    """
    gc.collect()
    gc.freeze()
