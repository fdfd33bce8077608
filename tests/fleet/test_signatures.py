import pytest

from proxy.fleet.signatures import WINDOW, Signer
from tests.fakes.clock import Clock

SECRET = b"0123456789abcdef"
A, B = "http://10.0.0.1:5000", "http://10.0.0.2:5000"
PATH = "/-/fleet/blobs/sha256:00?upstream=docker.io&repository=x&offset=0&live=1"


@pytest.fixture
def b(clock: Clock) -> Signer:
    return Signer(SECRET, B, clock)


@pytest.fixture
def header(clock: Clock) -> str:
    return Signer(SECRET, A, clock).sign("GET", B, PATH)


def test_a_request_of_a_replica_is_verified_once(b: Signer, header: str) -> None:
    assert b.verify("GET", PATH, header)
    assert not b.verify("GET", PATH, header), "replayed"


def test_a_request_is_a_replay_for_as_long_as_its_time_is_right(clock: Clock) -> None:
    ahead = Signer(SECRET, A, lambda: clock() + WINDOW - 1).sign("GET", B, PATH)
    b = Signer(SECRET, B, clock)
    assert b.verify("GET", PATH, ahead)
    clock.advance(2 * WINDOW - 2)
    assert not b.verify("GET", PATH, ahead), "replayed"
    assert Signer(SECRET, B, clock).verify("GET", PATH, ahead), "its time is still right"


def test_another_method_path_or_recipient_is_refused(b: Signer, header: str, clock: Clock) -> None:
    assert not b.verify("HEAD", PATH, header)
    assert not b.verify("GET", PATH.replace("offset=0", "offset=1"), header)
    assert not Signer(SECRET, A, clock).verify("GET", PATH, header)


def test_another_secret_is_refused(header: str, clock: Clock) -> None:
    assert not Signer(b"another secret..", B, clock).verify("GET", PATH, header)


@pytest.mark.parametrize("seconds", [WINDOW + 1, -WINDOW - 1])
def test_another_time_is_refused(header: str, seconds: float, clock: Clock) -> None:
    late = Signer(SECRET, B, lambda: clock() + seconds)
    assert not late.verify("GET", PATH, header)


@pytest.mark.parametrize(
    "damaged", [None, "", "1 2", "1 2 3 4", "x" * 1000, "nan nonce mac", "\udcff \udcff \udcff"]
)
def test_what_is_no_proof_is_refused(b: Signer, damaged: str | None) -> None:
    assert not b.verify("GET", PATH, damaged)


def test_a_nonce_cannot_be_changed(b: Signer, header: str) -> None:
    stamp, nonce, mac = header.split(" ")
    assert not b.verify("GET", PATH, f"{stamp} {nonce[:-1]} {mac}")
    assert not b.verify("GET", PATH, f"{stamp} {nonce[::-1]} {mac}")
    assert not b.verify("GET", PATH, f"{stamp}0 {nonce} {mac}")
    assert not b.verify("GET", PATH, f"{stamp[:-1]} {stamp[-1]}{nonce} {mac}")


def test_a_response_proves_itself_for_its_request_and_what_it_says(b: Signer, header: str) -> None:
    proof = b.sign_response(header, 200, "size=5")
    assert b.verify_response(header, proof, 200, "size=5")
    assert not b.verify_response(header, proof, 200, "size=6")
    assert not b.verify_response(header.upper(), proof, 200, "size=5")
    assert not b.verify_response(header, None, 200, "size=5")


def test_the_secret_is_not_shown(b: Signer, header: str) -> None:
    assert SECRET.decode() not in f"{b!r}{header}"
