"""The peer's application, with equal durability: confirmed publishes, late acks, results kept."""

import os
from typing import Any

from celery import Celery

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_BACKEND"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"confirm_publish": True},
    task_default_queue="celery_peer",
    worker_prefetch_multiplier=16,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    database_engine_options={"pool_size": 4, "pool_pre_ping": False},
)


@app.task(name="noop")  # type: ignore[untyped-decorator]  # theirs is untyped
def noop(*_: Any) -> dict[str, Any]:
    """Answers at once."""
    return {"state": 200, "message": "Success"}
