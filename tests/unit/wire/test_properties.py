"""Java properties text, by the rules of java.util.Properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.wire.properties import format_properties, parse_properties


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("brokerName=broker-a", "brokerName", "broker-a"),
        ("  brokerName = broker-a", "brokerName", "broker-a"),
        ("brokerName: broker-a", "brokerName", "broker-a"),
        ("brokerName broker-a", "brokerName", "broker-a"),
        ("empty=", "empty", ""),
        ("empty", "empty", ""),
        ("path=C\\:\\\\store", "path", "C:\\store"),
        ("a\\=b=c=d", "a=b", "c=d"),
        ("levels=1s \\\n   5s \\\r\n  10s", "levels", "1s 5s 10s"),
        ("name=\\u0041b", "name", "Ab"),
        ("kept=value with  blanks ", "kept", "value with  blanks "),
        ("twice=1\ntwice=2", "twice", "2"),
        ("cut=a\\", "cut", "a"),
    ],
)
def test_a_line_is_read_as_java_reads_it(text: str, key: str, value: str) -> None:
    """Separators, escapes and continued lines follow java.util.Properties."""
    assert parse_properties(text) == {key: value}


def test_comments_and_empty_lines_are_left_out() -> None:
    """A line that starts with # or ! says nothing, wherever its first character stands."""
    assert parse_properties("# a=1\n\n   ! b=2\r\n\tc=3\n") == {"c": "3"}


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9.]*", fullmatch=True), st.from_regex(r"[\w;:/.-]*", fullmatch=True)
    )
)
def test_what_is_answered_can_be_read_again(properties: dict[str, str]) -> None:
    """The text of GET_BROKER_CONFIG gives the same keys and values back."""
    assert parse_properties(format_properties(properties)) == properties


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    """No text makes the reader fail."""
    parse_properties(text)
