"""What `dane demo` shows: how the jobs go, and what came out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dane_core.cli.render import bar, plain, state_of, task_mark
from dane_core.client import ENDED, tasks_in

Json = Mapping[str, Any]

_MOST_SHOWN: Final = 12
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one source: its job as it ended, or why there was none."""

    source: str
    job: Json | None
    refusal: str = ""
    kept: Path | None = None  # the thumbnail, where it stays

    @property
    def succeeded(self) -> bool:
        return self.job is not None and self.job["status"] == "succeeded"

    @property
    def answers(self) -> Json:
        """By task key."""
        answers: Json = (self.job or {}).get("response", {})
        return {key: answer for key, answer in answers.items() if key != "SHARED"}

    @property
    def failures(self) -> Mapping[str, str]:
        """What each task that did not succeed has to say, by its key."""
        if self.job is None:
            return {"": self.refusal}
        tasks = tasks_in(self.job.get("tasks"))
        return {
            task["task_key"]: task["task_msg"] for task in tasks if state_of(task) in _UNFORTUNATE
        }

    @property
    def facts(self) -> Json:
        """All of it, for programs."""
        return {
            "source": _text(self.source),
            "job_id": self.job and self.job["job_id"],
            "status": "refused" if self.job is None else self.job["status"],
            "answers": self.answers,
            "failures": self.failures,
            "thumbnail": self.kept and _text(str(self.kept)),
        }


_UNFORTUNATE: Final = ("failed", "cancelled", "backoff", "unroutable")


class Progress:
    """How a number of jobs go: how many have ended, and each of those under way."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._open: dict[int, Json] = {}

    def see(self, job: Json) -> None:
        """Take note of a job as it now is."""
        if job["status"] in ENDED:
            self._open.pop(job["job_id"], None)
            self._ended += 1
        else:
            self._open[job["job_id"]] = job

    def render(self) -> RenderableType:
        overall = Text.assemble(
            bar(self._ended / max(self._total, 1)), f" {self._ended}/{self._total} files"
        )
        jobs = list(self._open.values())[:_MOST_SHOWN]
        return Group(overall, *(_job_line(job) for job in jobs))


def _job_line(job: Json) -> Text:
    marks = [task_mark(task) for task in tasks_in(job.get("tasks"))]
    return Text.assemble("  ", _called(job["source_url"]), "  ", Text("  ").join(marks))


# --- what came out -----------------------------------------------------------------------------


def results_page(results: Sequence[Result], folder: Path) -> RenderableType:
    """The answers for each source, and below them what failed and where the thumbnails are."""
    names = short_names([result.source for result in results])
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("FILE", "TYPE", "SIZE", "SHA-256", "MEDIA", "THUMBNAIL"):
        table.add_column(column, overflow="fold", justify="right" if column == "SIZE" else "left")
    for result in results:
        table.add_row(*_row(result, names[result.source]))
    failed = [result for result in results if not result.succeeded]
    return Group(
        table,
        Text(),
        *(_failure(names[one.source], message) for one in failed for message in _reasons(one)),
        Text(f"{len(results) - len(failed)} of {len(results)} done, {len(failed)} failed", "bold"),
        *_where(results, folder),
    )


def short_names(sources: Sequence[str]) -> Mapping[str, str]:
    """Sources by their file names; those that share one, and URLs, as they were given."""
    names = [Path(source).name for source in sources]
    return {
        source: plain(name if "://" not in source and names.count(name) == 1 else source)
        for source, name in zip(sources, names, strict=True)
    }


def _row(result: Result, name: str) -> tuple[RenderableType, ...]:
    answers = result.answers
    size = answers.get("FILESIZE", {}).get("size")
    sign = Text("✔ ", "green") if result.succeeded else Text("✘ ", "red")
    return (
        Text.assemble(sign, name),
        plain(answers.get("DOWNLOAD", {}).get("file_type", "")),
        "" if size is None else _size(size),
        plain(answers.get("CHECKSUM", {}).get("checksum", ""))[:8],
        _media(answers.get("MEDIAINFO", {})),
        "" if result.kept is None else plain(_near(result.kept)),
    )


def _media(info: Json) -> str:
    """Duration, resolution and codecs, as far as there are any."""
    words = []
    if info.get("duration"):
        words.append(_duration(info["duration"]))
    if info.get("width"):
        words.append(f"{info['width']}x{info['height']}")
    words += [stream["codec"] for stream in info.get("streams", ()) if stream.get("codec")]
    return plain(" ".join(map(str, words)))


def _reasons(result: Result) -> list[str]:
    """What failed, each reason once: after a broken file several tasks may say the same."""
    by_message: dict[str, list[str]] = {}
    for key, message in result.failures.items():
        by_message.setdefault(message, []).append(key)
    return [
        f"{', '.join(filter(None, keys))}: {message}".removeprefix(": ")
        for message, keys in by_message.items()
    ] or ["it did not succeed"]


def _failure(name: str, reason: str) -> Text:
    return Text.assemble(("✘ ", "red"), f"{name}: ", (plain(reason), "red"))


def _where(results: Sequence[Result], folder: Path) -> list[Text]:
    return [Text(f"thumbnails are in {_near(folder)}")] if any(r.kept for r in results) else []


# --- words -------------------------------------------------------------------------------------


def _called(source_url: str) -> str:
    """A source by the last part of its URL."""
    return plain(unquote(source_url.rstrip("/").rpartition("/")[2]) or source_url)


def _text(path: str) -> str:
    """A path as text: file names may have bytes that are none."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _near(path: Path) -> str:
    """A path from here, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit is large enough")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02.0f}"
    return f"{minutes}:{rest:02.0f}" if minutes else f"{rest:.1f} s"
