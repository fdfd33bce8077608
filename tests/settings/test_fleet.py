import pytest
from pydantic import ValidationError

from proxy.settings import Fleet


@pytest.mark.parametrize(
    "url", ["http://:hunter2@x", "redis://", "redis://:hunter2@x:port", "redis", "unix://"]
)
def test_what_is_no_redis_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Fleet.model_validate({"redis": url})
    [error] = refused.value.errors()
    assert "not the address of a Redis" in error["msg"]
    assert "hunter2" not in error["msg"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p@x:1/2",
        "rediss://x",
        "unix:///run/redis.sock?db=1",
        "redis://[::1]:6379",
        "rediss+sentinel://:p@x:1,y/mymaster/2",
    ],
)
def test_a_redis_is_accepted_and_not_shown(url: str) -> None:
    fleet = Fleet.model_validate({"redis": url})
    assert fleet.redis is not None
    assert fleet.redis.get_secret_value() == url
    assert url not in repr(fleet)


@pytest.mark.parametrize(
    "url", ["10.1.2.3:5000", "http://u:p@10.1.2.3", "http://x/path", "ftp://x", "http://x?y"]
)
def test_what_is_no_millpond_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="not the address of a Millpond"):
        Fleet.model_validate({"advertise": url})


def test_an_own_address_has_no_final_slash() -> None:
    assert (
        Fleet.model_validate({"advertise": "http://[::1]:5000/"}).advertise == "http://[::1]:5000"
    )


@pytest.mark.parametrize("name", ["a:b", "", "x" * 65, "*"])
def test_a_name_that_keys_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Fleet.model_validate({"name": name})


def test_the_address_of_sentinels_names_a_master() -> None:
    with pytest.raises(ValidationError, match="sentinels and of a master") as caught:
        Fleet.model_validate({"redis": "redis+sentinel://:hunter2@x"})
    assert "hunter2" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss-cluster"])
def test_a_cluster_is_refused_with_what_to_use_instead(scheme: str) -> None:
    with pytest.raises(ValidationError, match=r"Cluster cannot be used.*redis\+sentinel://"):
        Fleet.model_validate({"redis": f"{scheme}://x"})
