"""Reads a job specification, and tells everything that is wrong with it at once."""

from typing import Final

from dane_core.errors import BadSpec, Fault
from dane_core.spec.fault import Faults
from dane_core.spec.member import JobMembers, Reading, read_members
from dane_core.spec.node import JobSpec, Limits
from dane_core.spec.strictjson import check, decode, too_large
from dane_core.spec.tree import read_tree

_LIMITS: Final = Limits()

#: A byte or two of JSON can become a hundred of memory (`[],[],…`), so values are counted before
#: they are read; an object or array weighs as much as four of its members. A hundred thousand
#: tasks of 25 members each still fit in a body of the usual size.
_BYTES_PER_VALUE: Final = 8
_CONTAINER_WEIGHT: Final = 4


def parse_job(raw: bytes, limits: Limits = _LIMITS) -> JobSpec:
    """Read a specification as it was sent. Raises: BadSpec, with every fault in it."""
    if len(raw) > limits.body:
        raise BadSpec([Fault("", too_large(limits.body))])
    containers = raw.count(b"[") + raw.count(b"{")
    values = raw.count(b",") + _CONTAINER_WEIGHT * containers
    if values > limits.body // _BYTES_PER_VALUE:
        raise BadSpec([Fault("", "too many values for one specification")])
    return read_job(decode(raw), limits)


def read_job(data: object, limits: Limits = _LIMITS) -> JobSpec:
    """Read a specification from JSON values. Raises: BadSpec, with every fault in it."""
    faults = Faults()
    reading = Reading(limits, faults)
    head = read_members(JobMembers, data, None, reading)
    tasks = None
    if isinstance(data, dict):
        tasks = read_tree(data["tasks"], reading) if "tasks" in data else None
        if isinstance(data.get("metadata"), dict):
            check(data["metadata"], (None, "metadata"), limits.metadata, faults)
    if faults or head is None or tasks is None:
        raise faults.refusal()
    return JobSpec(
        source_url=head.source_url,
        source_id=head.source_id,
        tasks=tasks,
        type=head.type,
        metadata=head.metadata or {},
        priority=1 if head.priority is None else head.priority,
    )
