"""Names on the exchange: queues, routing keys, and which binding matches which key."""

import re
from functools import lru_cache
from typing import Final

from dane_core.errors import BadWorker

TASK_KEY: Final = re.compile(r"[A-Z0-9_-]{1,100}")
MEDIA_TYPE: Final = re.compile(r"[a-z0-9_-]{1,32}")
UNKNOWN_TYPE: Final = "unknown"

TASK_EXCHANGE: Final = "dane.tasks"
CONTROL_EXCHANGE: Final = "dane.control"
RESPONSE_QUEUE: Final = "dane.responses"
DEAD_QUEUE: Final = "dane.dead"
MAX_PRIORITY: Final = 10


def work_queue(task_key: str) -> str:
    """The one queue that all workers of a key share.

    One queue a key: two queues bound to one key would each get a copy of every task.
    """
    return f"dane.{task_key}"


def inbox_queue(worker_id: str) -> str:
    """The queue on which one worker hears control messages and answers to its questions."""
    return f"dane.worker.{worker_id}"


def epoch_queue(epoch: str) -> str:
    """The queue whose one message shows that the broker is the one the store has sent to.

    A broker that was wiped, or put back from its definitions, does not have it.
    """
    return f"dane.epoch.{epoch}"


def routing_key(media_type: str | None, task_key: str) -> str:
    """`<type>.<KEY>`, the address a task is published under."""
    return f"{media_type or UNKNOWN_TYPE}.{task_key}"


def task_key_of(routing_key: str) -> str:
    """The task key of such an address."""
    return routing_key.rpartition(".")[2]


def binding_keys(task_key: str, media_types: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What a worker binds its queue to: every type (`#.KEY`), or only the given ones."""
    if not TASK_KEY.fullmatch(task_key):
        raise BadWorker(f"{task_key!r} is not a task key: expected {TASK_KEY.pattern}")
    if not media_types:
        return (f"#.{task_key}",)
    for media_type in media_types:
        if not MEDIA_TYPE.fullmatch(media_type):
            raise BadWorker(f"{media_type!r} is not a type: expected {MEDIA_TYPE.pattern}")
    return tuple(f"{media_type}.{task_key}" for media_type in media_types)


def matches(binding: str, key: str) -> bool:
    """Whether a topic binding lets a routing key through.

    Words are separated by dots; `*` stands for one word and `#` for any number,
    as AMQP 0-9-1, section 3.1.3.3, defines the topic exchange.
    """
    return _pattern(binding).fullmatch(f".{key}") is not None


@lru_cache(maxsize=4096)
def _pattern(binding: str) -> re.Pattern[str]:
    words = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    return re.compile(
        "".join(words.get(word, rf"\.{re.escape(word)}") for word in binding.split("."))
    )
