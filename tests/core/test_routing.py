"""Names on the exchange, and which binding lets which routing key through."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dane_core.errors import BadWorker
from dane_core.routing import (
    DEAD_QUEUE,
    RESPONSE_QUEUE,
    binding_keys,
    inbox_queue,
    matches,
    routing_key,
    work_queue,
)


@pytest.mark.parametrize(
    ("binding", "key", "through"),
    [
        ("#.OCR", "image.OCR", True),
        ("#.OCR", "unknown.OCR", True),
        ("#.OCR", "image.OCR2", False),
        ("#.OCR", "OCR", True),
        ("#.OCR", "a.b.OCR", True),
        ("#.OCR", "image.XOCR", False),
        ("image.OCR", "image.OCR", True),
        ("image.OCR", "video.OCR", False),
        ("*.OCR", "image.OCR", True),
        ("*.OCR", "OCR", False),
        ("*.OCR", "a.b.OCR", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("*", "a", True),
        ("*", "a.b", False),
        ("*", "", True),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("a.#.b", "a.x.y", False),
        ("#.#", "a", True),
        ("a.*.#", "a", False),
        ("a.*.#", "a.b", True),
        ("a", "A", False),
        ("a-b_c", "a-b_c", True),
        ("(a|b)", "a", False),
        ("a.b", "axb", False),
    ],
)
def test_topics_match_as_amqp_says(binding: str, key: str, *, through: bool) -> None:
    """AMQP 0-9-1, section 3.1.3.3; in regular expressions the words stand for themselves."""
    assert matches(binding, key) is through


words = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5)
patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5)


def _lets_through(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    word, *rest = pattern
    if word == "#":
        return any(_lets_through(rest, key[skipped:]) for skipped in range(len(key) + 1))
    return bool(key) and word in ("*", key[0]) and _lets_through(rest, key[1:])


@given(pattern=patterns, key=words)
def test_topics_match_as_the_definition_does(pattern: list[str], key: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(key)) is _lets_through(pattern, key)


@pytest.mark.parametrize("media_type", [None, "video"])
def test_a_task_reaches_workers_of_any_type_and_of_its_own(media_type: str | None) -> None:
    key = routing_key(media_type, "OCR")

    assert all(matches(binding, key) for binding in binding_keys("OCR"))
    assert matches("video.OCR", key) is (media_type == "video")


def test_a_worker_that_names_types_gets_only_those() -> None:
    assert binding_keys("OCR", ("image", "video")) == ("image.OCR", "video.OCR")


@pytest.mark.parametrize("key", ["", "ocr", "A.B", "#", "A*", "Ä", "A B", "A\n", "A" * 101])
def test_a_key_that_would_break_routing_is_refused(key: str) -> None:
    with pytest.raises(BadWorker, match="task key"):
        binding_keys(key)


@pytest.mark.parametrize("media_type", ["", "Video", "a.b", "*", "a" * 33, "video\n"])
def test_a_type_that_would_break_routing_is_refused(media_type: str) -> None:
    with pytest.raises(BadWorker, match="type"):
        binding_keys("OCR", (media_type,))


def test_no_two_queues_have_one_name() -> None:
    """Keys are capitals, so no work queue is called as one of our own is."""
    ours = [RESPONSE_QUEUE, DEAD_QUEUE, inbox_queue("w1")]

    assert len({*ours, work_queue("OCR"), inbox_queue("w2")}) == 5
    assert not [name for name in ours if re.fullmatch(r"dane\.[A-Z0-9_-]+", name)]
