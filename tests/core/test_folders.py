"""The folders of a source: where DANE 0.1 had them, and nowhere a path could lead astray."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dane_core.folders import source_folders

TEMP, OUT = Path("/data/TEMP"), Path("/data/OUT")

plain_ids = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=255)
any_id = st.text(
    alphabet=st.one_of(
        st.characters(), st.sampled_from("../\\~%\0 :"), st.characters(categories=["Cs"])
    ),
    min_size=1,
    max_size=255,
)


def below(source_id: str) -> Path:
    return Path(source_folders(TEMP, OUT, source_id)["TEMP_FOLDER"]).relative_to(TEMP)


@pytest.mark.parametrize(
    ("source_id", "folder"),
    [
        ("T1", "T1/T1"),
        ("TEST123", "TE/ST/12/TEST123"),
        ("A", "A/A"),
        ("abc", "ab/c/abc"),
        ("UNITTEST123", "UN/IT/TE/UNITTEST123"),
        ("clip.mp4", "cl/ip/%2Em/clip.mp4"),
        ("../../etc", "%2/E%/2E/%2E%2E%2F..%2Fetc"),
        ("..", "%2/E%/2E/%2E%2E"),
        ("ab..cd", "ab/%2E%2E/cd/ab..cd"),
        ("é", "%C/3%/A9/%C3%A9"),
    ],
)
def test_a_source_has_the_folder_dane_0_1_gave_it_or_a_safe_one_like_it(
    source_id: str, folder: str
) -> None:
    assert below(source_id) == Path(folder)


def test_both_roots_are_used_and_made_absolute() -> None:
    folders = source_folders("TEMP", OUT, "T1")

    assert folders == {
        "TEMP_FOLDER": str(Path.cwd() / "TEMP/T1/T1"),
        "OUT_FOLDER": "/data/OUT/T1/T1",
    }


@given(plain_ids)
def test_a_plain_id_keeps_its_0_1_folder(source_id: str) -> None:
    """Files that 0.1 left behind must be found again."""
    chunks = [source_id[i : i + 2] for i in range(0, min(len(source_id), 6), 2)]

    assert below(source_id) == Path(*chunks, source_id)


@given(any_id)
@example("..")
@example(".")
@example("/etc/passwd")
@example("\\\\host\\share")
@example("a\0b")
@example("..a")
@example("a....")
@example("\U0001f3ac" * 255)
@example(" ")
@example("C:")
def test_no_id_leaves_its_root_or_makes_a_name_a_file_system_refuses(source_id: str) -> None:
    parts = below(source_id).parts

    assert 2 <= len(parts) <= 4
    for part in parts:
        assert part not in (".", "..")
        assert re.fullmatch(r"[A-Za-z0-9_.%~-]+", part)
        assert len(part) <= 255
        assert not part.startswith(".")
        assert not part.endswith(".")


@given(any_id, any_id)
@example("a/b", "a%2Fb")
@example("a.b", "a%2Eb")
@example(".", "%2E")
@example("x" * 255, "x" * 254)
@example("é" * 200, "é" * 200 + "!")
@example("~", "%7E")
def test_two_ids_never_share_a_folder(one: str, other: str) -> None:
    assume(one != other)

    assert below(one) != below(other)


def test_a_hashed_name_cannot_be_asked_for_by_another_id() -> None:
    """An attacker who knows a long id must not reach its folder under a short one."""
    long_id = "é" * 200
    hashed = below(long_id).name

    assert below(hashed) != below(long_id)
