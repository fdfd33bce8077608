import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.records import Descriptor
from proxy.fleet.tag_facts import Fact, newest, read_fact, read_key

NGINX = Target("docker.io", Repo("library/nginx"))
LATEST = Tag("latest")
KIND = "application/vnd.oci.image.manifest.v1+json"


def digest(number: int) -> Digest:
    return sha256(str(number).encode())


def fact(number: int, at: float) -> Fact:
    return Fact(NGINX, LATEST, Descriptor(KIND, digest(number), 100 + number), at)


FACTS = st.builds(fact, st.integers(0, 3), st.integers(0, 5).map(float))


@given(FACTS)
def test_a_fact_survives_its_message(sent: Fact) -> None:
    message = json.loads(sent.encoded())
    assert read_fact(message) == sent
    assert read_fact(message | {"of a later version": 1}) == sent
    assert read_key(message) == sent.key


@given(
    st.dictionaries(
        st.sampled_from(["at", "size", "digest", "type", "repo", "tag"]),
        st.none() | st.text("ab:/1", max_size=5) | st.floats() | st.integers(),
    )
)
def test_a_malformed_fact_is_none(changes: dict[str, object]) -> None:
    read = read_fact(json.loads(fact(1, 1.0).encoded()) | changes)
    assert read is None or (read.descriptor.size >= 0 and read.at >= 0)


@given(st.permutations([fact(n % 4, float(n // 3)) for n in range(9)]))
def test_all_replicas_choose_the_same_fact_in_any_order(facts: list[Fact]) -> None:
    known = None
    for one in facts:
        before = known
        known = newest(known, one)
        assert before is None or known.at >= before.at, "never back"
    assert known == max(facts, key=lambda one: (one.at, one.descriptor.digest))
