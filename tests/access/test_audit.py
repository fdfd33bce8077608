"""The content of one line of the audit log."""

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.access.audit import MAX_TEXT, AuditEvent, Event, Verdict, entry, line


def made(**more: object) -> AuditEvent:
    return AuditEvent(event=Event.PULL, outcome=Verdict.ALLOWED, time=1.5, **more)  # type: ignore[arg-type]


def test_what_is_unknown_is_left_out() -> None:
    written = json.loads(line(made(user="eve", bytes=0)))
    assert written == {
        "time": "1970-01-01T00:00:01.500Z",
        "event": "pull",
        "outcome": "allowed",
        "user": "eve",
        "bytes": 0,
    }


@given(st.text(max_size=2 * MAX_TEXT))
def test_no_text_of_a_client_can_begin_another_line(text: str) -> None:
    written = line(made(user=text, user_agent=text))
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    assert all(byte == 10 or 32 <= byte < 127 for byte in written)
    assert json.loads(written)["user"] == text[:MAX_TEXT]


@given(st.text(max_size=100))
def test_no_text_of_a_client_can_change_a_terminal(text: str) -> None:
    assert entry(made(user=text))["user"].isprintable()


def test_in_the_ordinary_log_the_event_has_the_name_audit() -> None:
    assert entry(made(user="eve\n")) == {
        "event": "audit",
        "level": "info",
        "timestamp": "1970-01-01T00:00:01.500Z",
        "audit": "pull",
        "outcome": "allowed",
        "user": "eve\\n",
    }
