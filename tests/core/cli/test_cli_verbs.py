"""The client's verbs: what they ask of the server, what they print, how they exit."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dane_core.cli import build
from tests.core.cli.called import Canned, Dane

JOB = {
    "job_id": 7,
    "source_url": "file:///films/a.mp4",
    "source_id": "a",
    "status": "succeeded",
    "created_at": "2030-01-31T12:00:00Z",
    "counts": {"total": 2, "blocked": 0, "active": 0, "succeeded": 2, "failed": 0},
}
TASK = {
    "task_key": "ASR",
    "task_id": 70,
    "task_state": 200,
    "task_msg": "Success",
    "job_id": 7,
    "status": "succeeded",
    "progress": None,
}


def with_job(server: Canned, **changes: Any) -> None:
    """A server that has job 7, of two tasks."""
    job = {**JOB, **changes}
    tasks = {"taskSequential": [{"Task": TASK}, {"Task": {**TASK, "task_id": 71}}]}
    server.answer("GET /DANE/job/7?tasks=false", job)
    server.answer("GET /DANE/job/7", {**job, "tasks": tasks, "response": {"ASR": {"words": 3}}})
    server.answer("GET /DANE/job/7/tasks", {"tasks": [{"Task": TASK}], "next": None})


# --- submit ------------------------------------------------------------------------------------


def test_a_file_is_submitted_as_it_is(dane: Dane, server: Canned, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"source_url": "x"}\n')
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)

    said = dane("submit", "job.json", "--server", server.url)

    assert said.code == 0
    assert "job 7" in said.out
    assert server.bodies[0] == b'{"source_url": "x"}\n'


def test_inline_json_is_submitted(dane: Dane, server: Canned) -> None:
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)

    said = dane("submit", '{"source_url": "x"}', "--json", "--server", server.url)

    assert said.json["job_id"] == 7
    assert server.bodies[0] == b'{"source_url": "x"}'


def test_standard_input_is_submitted(server: Canned) -> None:
    """In a process of its own, whose standard input is really one."""
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)
    code = "from dane_core.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", code, "submit", "-", "--server", server.url],
        input=b'{"source_url": "x"}',
        capture_output=True,
        check=True,
    )

    assert b"job 7" in done.stdout
    assert server.bodies[0] == b'{"source_url": "x"}'


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a": 2}]', '{"a": 1}\n{"a": 2}\n'])
def test_an_array_or_lines_are_many_jobs(
    dane: Dane, server: Canned, tmp_path: Path, content: str
) -> None:
    (tmp_path / "jobs.ndjson").write_text(content)
    lines = [{"line": 1, "status": 201, "job_id": 7}, {"line": 2, "status": 201, "job_id": 7}]
    server.answer("POST /DANE/jobs", lines)
    with_job(server)

    said = dane("submit", "jobs.ndjson", "--json", "--server", server.url)

    assert said.code == 0
    assert len(said.out.splitlines()) == 2
    assert [json.loads(line) for line in server.bodies[0].splitlines()] == [{"a": 1}, {"a": 2}]


def test_of_many_jobs_a_bad_one_fails_alone(dane: Dane, server: Canned) -> None:
    bad = {"line": 1, "status": 422, "detail": "tasks: is empty", "errors": []}
    server.answer("POST /DANE/jobs", [bad, {"line": 2, "status": 201, "job_id": 7}])
    with_job(server)

    said = dane("submit", "{}", "{}", "--server", server.url)

    assert said.code == 2
    assert "specification 1: tasks: is empty" in said.err
    assert "job 7" in said.out


def test_watching_shows_the_tree_and_exits_by_the_outcome(dane: Dane, server: Canned) -> None:
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)
    succeeded = dane("submit", "{}", "--watch", "--server", server.url)
    with_job(server, status="failed")
    failed = dane("submit", "{}", "--watch", "--server", server.url)

    assert (succeeded.code, failed.code) == (0, 1)
    assert "✔ ASR" in succeeded.out
    assert "✘ failed" in failed.out


def test_watching_for_programs_is_a_line_for_each_change(dane: Dane, server: Canned) -> None:
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)

    said = dane("submit", "{}", "--watch", "--json", "--server", server.url)

    (line,) = said.out.splitlines()
    assert json.loads(line)["response"] == {"ASR": {"words": 3}}


def test_a_refused_specification_is_wrong_usage_and_every_fault_is_told(
    dane: Dane, server: Canned
) -> None:
    errors = [{"path": "tasks", "message": "is empty"}, {"path": "type", "message": "too long"}]
    problem = {"title": "Cannot be accepted", "status": 422, "detail": "2", "errors": errors}
    server.answer("POST /DANE/job", problem, 422)

    said = dane("submit", "{}", "--server", server.url)

    assert said.code == 2
    assert "tasks: is empty" in said.err
    assert "type: too long" in said.err
    assert "Traceback" not in said.err


def test_a_file_that_is_not_there_is_wrong_usage(dane: Dane) -> None:
    said = dane("submit", "no-such-file.json")

    assert said.code == 2
    assert "No such file" in said.err


def test_an_idempotency_key_goes_with_one_specification(dane: Dane) -> None:
    assert dane("submit", "{}", "{}", "--idempotency-key", "k").code == 2


# --- run ---------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_keeps_the_rest_off_stdout(
    dane: Dane, server: Canned, tmp_path: Path
) -> None:
    (tmp_path / "a film #1.mp4").touch()
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)

    said = dane(
        "run", "asr", "a film #1.mp4", "-a", "model=big", "-a", "beams=4", "--server", server.url
    )

    assert said.code == 0
    assert said.json == {"words": 3}
    spec = json.loads(server.bodies[0])
    assert spec["source_url"] == (tmp_path / "a film #1.mp4").as_uri()
    assert spec["type"] == "video"
    assert spec["tasks"] == {"Task": {"task_key": "asr", "args": {"model": "big", "beams": 4}}}


def test_run_exits_with_1_when_the_task_failed(dane: Dane, server: Canned) -> None:
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server, status="failed")

    assert dane("run", "ASR", "http://a.test/x", "--server", server.url).code == 1


def test_sources_of_one_name_have_ids_of_their_own(dane: Dane, server: Canned) -> None:
    """One source_id always has one source_url, or the server refuses."""
    server.answer("POST /DANE/job", JOB, 201)
    with_job(server)

    for url in ("http://a.test/x.png", "http://b.test/x.png", "http://a.test/x.png"):
        dane("run", "ASR", url, "--server", server.url)

    bodies = [json.loads(body) for body in server.bodies if body]
    first, second, again = (body["source_id"] for body in bodies)
    assert first == again != second
    assert first.startswith("x-png-")


@pytest.mark.parametrize("argument", ["model", "=5", ""])
def test_an_argument_without_a_name_is_wrong_usage(dane: Dane, argument: str) -> None:
    assert dane("run", "ASR", "x", "-a", argument).code == 2


# --- job, task, workers --------------------------------------------------------------------------


def test_jobs_are_listed_with_their_filters(dane: Dane, server: Canned) -> None:
    line = "GET /DANE/jobs?status=failed&task_key=ASR&limit=20"
    server.answer(line, {"jobs": [JOB], "next": None})

    said = dane("job", "list", "--status", "failed", "--key", "ASR", "--server", server.url)

    assert said.code == 0
    assert "7" in said.out
    assert server.asked == [line]


def test_a_job_is_shown_with_its_tasks_and_answers(dane: Dane, server: Canned) -> None:
    with_job(server)

    said = dane("job", "show", 7, "--server", server.url)

    assert "✔ ASR" in said.out
    assert '{"words":3}' in said.out


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_watching_a_job_exits_by_its_outcome(
    dane: Dane, server: Canned, status: str, code: int
) -> None:
    with_job(server, status=status)

    assert dane("job", "watch", 7, "--server", server.url).code == code


@pytest.mark.parametrize("act", ["retry", "cancel", "pause", "resume"])
def test_an_act_on_a_job_is_posted_and_the_job_is_shown(
    dane: Dane, server: Canned, act: str
) -> None:
    server.answer(f"POST /DANE/job/7/{act}", JOB, 202)
    with_job(server)

    said = dane("job", act, 7, "--json", "--server", server.url)

    assert said.json["job_id"] == 7
    assert server.asked[0] == f"POST /DANE/job/7/{act}"


def test_a_job_is_deleted(dane: Dane, server: Canned) -> None:
    server.answer("DELETE /DANE/job/7", None, 204)

    assert dane("job", "delete", 7, "--server", server.url).out == "job 7 deleted\n"


def test_an_act_that_the_state_forbids_says_why(dane: Dane, server: Canned) -> None:
    problem = {"title": "The present state does not allow this", "detail": "job 7 is done"}
    server.answer("POST /DANE/job/7/pause", {**problem, "status": 409, "errors": []}, 409)

    said = dane("job", "pause", 7, "--server", server.url)

    assert said.code == 2
    assert said.err == "dane: 409 The present state does not allow this: job 7 is done\n"


def test_a_task_is_shown_with_its_attempts_and_answer(dane: Dane, server: Canned) -> None:
    attempt = {"number": 1, "state": 503, "runtime": 1.5, "worker": "w1", "message": "no GPU"}
    task = {**TASK, "attempts": [attempt], "response": {"words": 3}, "worker": "w2"}
    server.answer("GET /DANE/task/70", {"Task": task})

    said = dane("task", "show", 70, "--server", server.url)

    assert "no GPU" in said.out
    assert '"words": 3' in said.out


@pytest.mark.parametrize("act", ["retry", "forceretry", "reset"])
def test_an_act_on_a_task_is_posted_and_the_task_is_shown(
    dane: Dane, server: Canned, act: str
) -> None:
    server.answer(f"POST /DANE/task/70/{act}", {"Task": TASK})

    said = dane("task", act, 70, "--server", server.url)

    assert said.code == 0
    assert "ASR" in said.out


def test_a_task_is_explained_in_a_sentence(dane: Dane, server: Canned) -> None:
    sentence = "No worker is bound to ASR."
    body = {"task_id": 70, "reason": "no_worker", "sentence": sentence, "data": {}}
    server.answer("GET /DANE/task/70/explain", body)

    assert sentence in dane("task", "explain", 70, "--server", server.url).out
    assert dane("task", "explain", 70, "--json", "--server", server.url).json == body


def test_workers_are_listed_by_key(dane: Dane, server: Canned) -> None:
    counts = {"waiting": 1, "ready": 2, "queued": 3, "running": 4}
    key = {"task_key": "ASR", "types": [], "workers": [{}], "paused": True, "rate": 0.5, **counts}
    server.answer("GET /DANE/workers", {"keys": [{**key, "oldest_wait": 7200.0}]})

    said = dane("workers", "--server", server.url)

    assert "ASR paused" in said.out
    assert "2.0 h" in said.out


def test_a_key_is_held_back_let_go_and_retried(dane: Dane, server: Canned) -> None:
    server.answer("POST /DANE/workers/ASR/pause", {"task_key": "ASR", "paused": True}, 202)
    server.answer("POST /DANE/workers/ASR/resume", {"task_key": "ASR", "paused": False}, 202)
    retried = {"task_key": "ASR", "retried": 5}
    server.answer("POST /DANE/workers/ASR/retry?state=404", retried, 202)

    said = [
        dane("workers", "pause", "ASR", "--server", server.url),
        dane("workers", "resume", "ASR", "--server", server.url),
        dane("workers", "retry", "ASR", "--state", 404, "--server", server.url),
    ]

    assert [each.out for each in said] == [
        "ASR is paused\n",
        "ASR goes on\n",
        "ASR: 5 tasks run again\n",
    ]


def test_the_limits_of_a_key_are_shown_with_who_has_its_places(dane: Dane, server: Canned) -> None:
    limits = {"concurrency": 2, "rate": 10.0, "burst": None}
    holder = {"task_id": 70, "job_id": 7, "state": "running", "worker": "w1", "since": None}
    body = {"task_key": "ASR", "limits": limits, "holders": [holder], "next": None}
    server.answer("GET /DANE/workers/ASR/limits", body)

    said = dane("workers", "limits", "ASR", "--server", server.url)

    assert "ASR  2 at once, 10/s" in said.out
    assert "70" in said.out
    assert "w1" in said.out
    assert server.asked == ["GET /DANE/workers/ASR/limits"]


def test_limits_of_a_key_are_set_and_taken_away(dane: Dane, server: Canned) -> None:
    limits = {"concurrency": 2, "rate": None, "burst": None}
    body: dict[str, Any] = {"task_key": "ASR", "limits": limits, "holders": [], "next": None}
    server.answer("PUT /DANE/workers/ASR/limits", body)
    server.answer("GET /DANE/workers/ASR/limits", body)

    options = ("--concurrency", 2, "--rate", "none")
    said = dane("workers", "limits", "ASR", *options, "--server", server.url)

    assert said.out == "ASR  2 at once\n"
    assert json.loads(server.bodies[0]) == {"concurrency": 2, "rate": None}


def test_a_limit_that_is_no_number_is_wrong_usage(dane: Dane, server: Canned) -> None:
    said = dane("workers", "limits", "ASR", "--rate", "fast", "--server", server.url)

    assert said.code == 2
    assert "--rate" in said.err
    assert server.asked == []


def test_owners_are_listed_and_given_a_share(dane: Dane, server: Canned) -> None:
    owner = {"owner": "ann", "weight": 3, "max_open": 50_000, "open": 1200}
    nobody = {"owner": "", "weight": 1, "max_open": None, "open": 7}
    server.answer("GET /DANE/owners", {"owners": [nobody, owner], "next": None})
    server.answer("PUT /DANE/owners/ann", owner)

    listed = dane("owners", "--server", server.url)
    options = ("--weight", 3, "--max-open", "50000")
    changed = dane("owners", "set", "ann", *options, "--json", "--server", server.url)
    nothing = dane("owners", "set", "ann", "--server", server.url)

    assert "50,000" in listed.out
    assert "nobody" in listed.out
    assert changed.json == owner
    assert json.loads(server.bodies[1]) == {"weight": 3, "max_open": 50_000}
    assert nothing.code == 2


def test_jobs_and_tasks_are_given_a_priority(dane: Dane, server: Canned) -> None:
    with_job(server)
    server.answer("PUT /DANE/job/7/priority", JOB, 202)
    server.answer("PUT /DANE/task/70/priority", {"Task": TASK})

    job = dane("job", "priority", 7, 9, "--server", server.url)
    task = dane("task", "priority", 70, 0, "--server", server.url)
    too_high = dane("job", "priority", 7, 11, "--server", server.url)

    assert "job 7" in job.out
    assert "ASR" in task.out
    assert [json.loads(body) for body in server.bodies if body] == [
        {"priority": 9},
        {"priority": 0},
    ]
    assert too_high.code == 2


# --- which server ------------------------------------------------------------------------------


def test_the_server_is_named_by_the_environment(
    dane: Dane, server: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANE_API_URL", f"{server.url}/DANE/")
    server.answer("GET /DANE/workers", {"keys": []})

    assert dane("workers").out == "no worker has come yet\n"


def test_the_server_is_named_by_a_configuration_file(
    dane: Dane, server: Canned, tmp_path: Path
) -> None:
    (tmp_path / "far.yml").write_text(f"DANE: {{API_URL: '{server.url}'}}")
    server.answer("GET /DANE/workers", {"keys": []})

    assert dane("workers", "--json", "--config", "far.yml").json == []


def test_a_server_named_by_option_needs_no_configuration_in_order(
    dane: Dane, server: Canned, tmp_path: Path
) -> None:
    (tmp_path / "config.yml").write_text("another: program's file")
    server.answer("GET /DANE/workers", {"keys": []})

    assert dane("workers", "--server", server.url).code == 0


def test_nobody_at_the_address_is_exit_code_3(dane: Dane) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

        said = dane("job", "list", "--server", url)

    assert said.code == 3
    assert said.err.startswith(f"dane: no DANE server answers at {url}")
    assert "Traceback" not in said.err


def test_a_server_without_its_store_is_exit_code_3(dane: Dane, server: Canned) -> None:
    problem = {"title": "The store cannot be reached now", "status": 503, "errors": []}
    server.answer("POST /DANE/job", problem, 503)

    assert dane("submit", "{}", "--server", server.url).code == 3


def test_a_full_server_is_exit_code_3(dane: Dane, server: Canned) -> None:
    """As with one that is away: nothing is wrong with what was asked, and later it is taken."""
    problem = {"title": "Too much is to be done already", "status": 429, "errors": []}
    server.answer("POST /DANE/job", problem, 429)

    assert dane("submit", "{}", "--server", server.url).code == 3


def test_a_wrong_configuration_is_exit_code_78(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("DANE: {PROT: 5}\nWORKER: {SLOTS: none}\n")

    said = dane("job", "list")

    assert said.code == 78
    slots = "WORKER.SLOTS: expected a whole number, 1 or more, not 'none'"
    assert said.err.splitlines() == [
        "dane: the configuration cannot be used",
        f"  {tmp_path}/config.yml line 1: DANE.PROT: unknown key; did you mean PORT?",
        f"  {tmp_path}/config.yml line 2: {slots}",
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("jobs",),
        ("job", "show"),
        ("job", "show", "x"),
        ("job", "show", "0"),
        ("submit",),
        ("worker",),
        ("job", "list", "--no-such-option"),
    ],
)
def test_wrong_usage_is_exit_code_2(dane: Dane, args: tuple[str, ...]) -> None:
    said = dane(*args)

    assert said.code == 2
    assert "Traceback" not in said.err


def test_every_verb_speaks_to_programs_too() -> None:
    root: Any = typer.main.get_command(build())
    verbs = [(name, verb) for name, verb in root.commands.items()]
    for name, verb in verbs:
        below = getattr(verb, "commands", {})
        verbs.extend((f"{name} {inner}", command) for inner, command in below.items())

    silent = [
        name for name, verb in verbs if not takes_json(verb) and not hasattr(verb, "commands")
    ]

    assert len(verbs) > 25
    assert silent == []


def takes_json(verb: Any) -> bool:
    return any("--json" in parameter.opts for parameter in verb.params)


def test_the_version_is_told(dane: Dane) -> None:
    assert dane("--version").out.startswith("dane ")


# --- being quick -------------------------------------------------------------------------------


def test_starting_loads_no_library_that_only_some_verbs_need() -> None:
    """`dane --help` and completion run at every keystroke of somebody."""
    code = "import sys; from dane_core.cli import build; build(); print(*sys.modules, sep='\\n')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    heavy = {"httpx", "aio_pika", "sqlalchemy", "fastapi", "uvicorn", "av", "PIL", "pydantic"}
    assert heavy & set(done.stdout.split()) == set()
