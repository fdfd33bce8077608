"""Readiness: one reason for each part, and one log line for each change."""

from structlog.testing import capture_logs

from proxy.runtime.readiness import Readiness


def test_a_part_has_one_reason_which_is_its_last() -> None:
    readiness = Readiness()
    assert readiness.reasons == {}
    readiness.report("index", "it is being read")
    readiness.report("eviction", "fails repeatedly: OSError")
    readiness.report("index", "it cannot be read")
    assert readiness.reasons == {
        "index": "it cannot be read",
        "eviction": "fails repeatedly: OSError",
    }
    readiness.clear("index")
    assert readiness.reasons == {"eviction": "fails repeatedly: OSError"}
    readiness.clear("eviction")
    assert readiness.reasons == {}


def test_each_change_is_one_line_of_the_log() -> None:
    readiness = Readiness()
    with capture_logs() as lines:
        readiness.clear("index")
        for reason in ("first", "first", "second"):
            readiness.report("index", reason)
        readiness.report("eviction", "third")
        readiness.clear("index")
        readiness.clear("index")
    said = [(line["event"], line["because"], line["log_level"]) for line in lines]
    assert said == [
        ("not ready", "index", "warning"),
        ("not ready", "index", "warning"),
        ("not ready", "eviction", "warning"),
        ("ready again", "index", "info"),
    ]
    assert [line["reason"] for line in lines[:3]] == ["first", "second", "third"]
    assert lines[3]["others"] == ["eviction"]
