import pytest

from proxy.access import callers
from proxy.access.callers import Callers
from proxy.access.credentials import Basic, Bearer
from proxy.upstream.credentials.caller import ANONYMOUS

ANN = Basic("ann", "wonderland")


def test_a_reference_tells_nothing_and_is_of_one_process() -> None:
    known = Callers()
    caller = known.add("ghcr.io", ANN)
    assert known.add("ghcr.io", ANN).key == caller.key
    assert known.get(caller.key) == caller
    others = [
        Callers().add("ghcr.io", ANN),
        known.add("quay.io", ANN),
        known.add("ghcr.io", Basic("ann", "other")),
        known.add("ghcr.io", Bearer("wonderland")),
    ]
    assert caller.key not in {other.key for other in others}
    assert "wonderland" not in f"{known!r} {caller!r} {vars(known)!r}"


def test_a_login_is_for_its_upstream_only() -> None:
    known = Callers()
    key = known.add("ghcr.io", ANN).key
    assert known.of(key, "ghcr.io").credential is not None
    assert known.of(key, "quay.io") is ANONYMOUS
    assert known.of(None, "ghcr.io") is ANONYMOUS
    assert known.of("forged", "ghcr.io") is ANONYMOUS


def test_an_identity_token_is_one() -> None:
    for sent in (Bearer("refresh"), Basic("<token>", "refresh")):
        credential = Callers().add("ghcr.io", sent).credential
        assert credential is not None
        assert credential.is_identity_token
        assert credential.password == "refresh"


def test_a_login_ends_when_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(callers.time, "monotonic", lambda: now)
    known = Callers()
    key = known.add("ghcr.io", ANN).key
    for _ in range(3):
        now += callers.KEPT_SECONDS - 1
        assert known.get(key) is not None
    now += callers.KEPT_SECONDS
    assert known.get(key) is None
    assert known.of(key, "ghcr.io") is ANONYMOUS


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_CALLERS", 2)
    known = Callers()
    keys = [known.add("ghcr.io", Basic("ann", str(number))).key for number in range(3)]
    assert [known.get(key) is not None for key in keys] == [False, True, True]
