"""The rows of the fault matrix, and where those are shown that have no test here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault. Its test in this folder says more; some are shown by tests that stand elsewhere."""

    number: int
    part: str
    fault: str
    shown_by: tuple[str, ...] = ()  # tests outside this folder, which `make faults` runs too
    not_here: str = ""  # why no test can show it on one machine, or whose issue it is


_ACCESS: Final = "belongs to the issue on access: there are no users and keys yet"
_FILES: Final = "belongs to the issue on uploads and downloads"
_CONSOLE: Final = "belongs to the issue on the console"
_HOOKS: Final = "belongs to the issue on webhooks: the server fetches nothing yet"
_VERSIONS: Final = "needs RabbitMQ 3.13, 4.2 and 4.3, of which one machine has one at a time"
_HOSTILE: Final = ("tests/core/test_spec_hostile.py", "tests/server/api/test_api_wrong_inputs.py")

_PARTS: Final[Mapping[str, Mapping[int, str]]] = {
    "Server ended by kill -9": {
        1: "before the job is committed",
        2: "after the job is committed, before the 201",
        3: "after a claim is committed, before it is published",
        4: "after publishing, before the confirm is known",
        5: "after the confirm, before the task is marked as queued",
        6: "an answer received, its transaction not begun",
        7: "an answer committed, not acknowledged",
        8: "acknowledged, successors not published",
        9: "in the middle of a batch of 100 answers",
        10: "after the attempt of a lost worker was closed",
        11: "during a migration, between two statements",
        12: "during a drain; a second SIGTERM",
    },
    "Worker": {
        13: "killed right after delivery",
        14: "killed in the middle of a task",
        15: "killed in the middle of a task after the hand-off",
        16: "killed when the answer is computed and not published",
        17: "killed when the answer is published and not confirmed",
        18: "killed when the answer is confirmed and the task not acknowledged",
        19: "frozen for long, then thawed",
        20: "a task that hangs in C or loops for ever",
        21: "a task that kills its worker every time",
        22: "the child of a task killed for lack of memory",
        23: "a task that raises, ends with a code, or floods stderr",
        24: "all workers restarted in turn, under load",
    },
    "Broker": {
        25: "restarted in good order, under load",
        26: "killed, under load",
        27: "wiped",
        28: "a work queue or the response queue deleted",
        29: "unreachable for a minute, or silent",
        30: "unreachable for an hour with 50,000 open tasks",
        31: "a memory or disk alarm for a minute",
        32: "a consumer timeout of a minute, and a task of five",
        33: "a queue that exists with other arguments",
        34: "a slow wire: 10 kB/s, 2 s latency, resets",
        35: "credentials revoked while running",
        36: "RabbitMQ 3.10, 3.13, 4.2, 4.3; classic and quorum queues",
        37: "the broker refuses messages: the queue is full",
    },
    "Database": {
        38: "restarted, or killed, under load",
        39: "a connection cut in the middle of a transaction",
        40: "the answer to a COMMIT is lost",
        41: "deadlocks and lock waits",
        42: "silent for a minute",
        43: "full, or read-only",
        44: "10,000 requests cancelled at random",
        45: "the pool exhausted by slow queries",
        46: "three runners end 100,000 children of one node at once",
        47: "SQLite: a second server on one file",
        48: "SQLite: killed during writes and checkpoints, 200 times",
    },
    "Messages": {
        49: "one result a hundred times",
        50: "the late result of an old attempt",
        51: "a result for a deleted, cancelled or unknown task",
        52: "a message that nobody can read",
        53: "a result that is too large",
        54: "a forged result",
        55: "results out of order",
        56: "no worker is bound to the key",
        57: "the worker of a key comes later",
        58: "two queues bound to one key",
        59: "a slow worker and 100,000 tasks",
        60: "returns and confirms mixed, 200 at once",
    },
    "Scale and time": {
        61: "a job of 100,000 tasks; 10,000 jobs at once",
        62: "two and five servers, killed at random",
        63: "clocks that jump",
        64: "partitions between two of three",
        65: "the server's loop blocked for 30 s",
        66: "no file descriptors, no space",
    },
    "Hostile input": {
        67: "cycles, repeated ids, unknown dependencies, empty groups",
        68: "deep, wide and long specifications",
        69: "numbers at and past every edge",
        70: "characters that break things",
        71: "repeated keys, encodings, trailing garbage, bombs",
        72: "paths that leave their folder",
        73: "addresses that lead inside",
        74: "line breaks in headers and logs",
        75: "scripts in what people write",
        76: "requests forged by other sites",
        77: "no key, a wrong one, somebody else's",
        78: "forged tokens",
        79: "acting on what is somebody else's",
        80: "members that nobody may set",
        81: "uploads made to harm",
        82: "floods",
        83: "slow requests and slow readers",
        84: "smuggled requests",
        85: "open to the world without a key",
    },
}

_SHOWN_BY: Final[Mapping[int, tuple[str, ...]]] = {
    62: ("tests/stories/test_stories_several.py",),
    11: ("tests/migrations/test_migrations.py",),
    47: ("tests/server/test_storage_engine.py",),
    **dict.fromkeys(range(67, 72), _HOSTILE),
}
_NOT_HERE: Final[Mapping[int, str]] = {
    36: _VERSIONS,
    72: _FILES,
    73: _HOOKS,
    74: _ACCESS,
    75: _CONSOLE,
    76: _ACCESS,
    77: _ACCESS,
    78: _ACCESS,
    79: _ACCESS,
    80: _ACCESS,
    81: _FILES,
    82: _ACCESS,
    83: _ACCESS,
    84: _ACCESS,
    85: _ACCESS,
}

ROWS: Final = {
    number: Row(
        number=number,
        part=part,
        fault=fault,
        shown_by=_SHOWN_BY.get(number, ()),
        not_here=_NOT_HERE.get(number, ""),
    )
    for part, faults in _PARTS.items()
    for number, fault in faults.items()
}
