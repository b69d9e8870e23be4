"""The job specification: what it may say, and how it is read, written and described."""

from dane_core.spec.dump import dump_job, dump_task, nest
from dane_core.spec.node import (
    GraphNode,
    GraphSpec,
    JobSpec,
    Limits,
    Node,
    Parallel,
    Sequential,
    TaskSpec,
    children,
    fold,
)
from dane_core.spec.read import parse_job, read_job
from dane_core.spec.schema import job_schema
from dane_core.spec.source import requote

__all__ = [
    "GraphNode",
    "GraphSpec",
    "JobSpec",
    "Limits",
    "Node",
    "Parallel",
    "Sequential",
    "TaskSpec",
    "children",
    "dump_job",
    "dump_task",
    "fold",
    "job_schema",
    "nest",
    "parse_job",
    "read_job",
    "requote",
]
