"""A contender for submissions: a route of FastAPI that reads a job and keeps nothing.

`python -m benchmarks.bare_route` prints its address and serves it.
"""

import socket
import sys
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()


@app.post("/DANE/job", status_code=201, response_model=None)
async def take(request: Request) -> JSONResponse:
    """Read it, and say that it was read."""
    spec: dict[str, Any] = orjson.loads(await request.body())
    return JSONResponse({"job_id": 1, "source_id": spec["source_id"]}, status_code=201)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as door:
        sys.stdout.write(f"http://127.0.0.1:{door.getsockname()[1]}\n")
        sys.stdout.flush()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        server.run(sockets=[door])
