"""A source's URL is stored so that it can be opened and compared, whoever wrote it."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dane_core.spec import requote

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("given_as", "stored_as"),
    [
        ("http://host/ä b?x=1", "http://host/%C3%A4%20b?x=1"),
        ("http://host/a%20b%2Fc", "http://host/a%20b%2Fc"),
        ("http://host/100%", "http://host/100%25"),
        ("http://host/100%zz%4", "http://host/100%25zz%254"),
        ("http://host/a[1].mp4?q={x}|y#t=1,2", "http://host/a[1].mp4?q=%7Bx%7D%7Cy#t=1,2"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("http://bücher.example/bücher", "http://bücher.example/b%C3%BCcher"),
        ("HTTPS://Host/%c3%A4~", "HTTPS://Host/%c3%A4~"),
        ("http://ho st/x", "http://ho%20st/x"),
        ("s3://bucket/my clip.mp4", "s3://bucket/my%20clip.mp4"),
        ("file:///data/my clip.mp4", "file:///data/my%20clip.mp4"),
        ("file:/data/my clip.mp4", "file:/data/my%20clip.mp4"),
        ("urn:nbn:nl:x y", "urn:nbn:nl:x%20y"),
        ("/data/my clip.mp4", "/data/my clip.mp4"),
        ("/data/100% ä#1?.mp4", "/data/100% ä#1?.mp4"),
        ("clips/a:b c.mp4", "clips/a:b c.mp4"),
        ("clip 1: the end.mp4", "clip 1: the end.mp4"),
        ("C:\\clips\\my clip.mp4", "C:\\clips\\my clip.mp4"),
        ("C:/clips/my clip.mp4", "C:/clips/my clip.mp4"),
        ("//server/share/my clip.mp4", "//server/share/my clip.mp4"),
    ],
)
def test_urls_are_quoted_and_paths_are_not(given_as: str, stored_as: str) -> None:
    """In a path a `%20` is part of a file's name; in a URL it is a space."""
    assert requote(given_as) == stored_as


urls = st.tuples(
    st.sampled_from(["http://", "https://user@", "file:///", "s3://", "x+y:", ""]),
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("%%%:/?#[]@ 4f")),
).map("".join)


@unhurried
@given(urls)
def test_quoting_twice_is_quoting_once(url: str) -> None:
    """One source_id has one source_url, and a client may send back what it was shown."""
    once = requote(url)

    assert requote(once) == once


@unhurried
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_url_holds_only_what_a_url_may(text: str) -> None:
    """RFC 3986, section 2, and every percent sign begins an escape."""
    quoted = requote(f"http://host/{text}")

    assert re.fullmatch(r"([A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*", quoted)
