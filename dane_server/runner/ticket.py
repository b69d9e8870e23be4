"""Signs the tickets of tasks, so that nobody can answer a task they were not given."""

import hmac
import secrets
from typing import Final

from dane_core.job import TaskId
from dane_core.message import Ticket

#: Under this name all servers on a store share one key.
SIGNING_KEY: Final = "tickets"


def new_secret() -> str:
    return secrets.token_hex(32)


class Signer:
    """HMAC-SHA-256 (RFC 2104) over task and attempt; the same for each sending of an attempt."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def ticket(self, task_id: TaskId, attempt: int, dispatch: int) -> Ticket:
        token = self._token(task_id, attempt)
        return Ticket(task_id=task_id, attempt=attempt, dispatch=dispatch, token=token)

    def is_genuine(self, ticket: Ticket) -> bool:
        return hmac.compare_digest(
            self._token(ticket.task_id, ticket.attempt).encode(), ticket.token.encode()
        )

    def _token(self, task_id: int, attempt: int) -> str:
        said = f"{task_id}|{attempt}".encode()
        return hmac.digest(self._secret, said, "sha256").hex()[:32]
