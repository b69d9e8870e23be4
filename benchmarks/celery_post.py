"""Posts work to the peer, as a client of it would: `celery_post.py KIND NUMBER`.

Prints when it began (seconds since the epoch), after everything was imported and connected.
"""

import sys
import time

from celery import chain, chord, group

from benchmarks.celery_app import app, noop


def main(kind: str, number: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection()
    sys.stdout.write(f"{time.time()}\n")
    sys.stdout.flush()
    match kind:
        case "group":
            group(noop.s() for _ in range(number)).apply_async()
        case "chain":
            chain(*[noop.s() for _ in range(number)]).apply_async()
        case "chords":
            for _ in range(number):
                chord([noop.s() for _ in range(10)], noop.s()).apply_async()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
