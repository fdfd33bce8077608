import pytest

from proxy.core.sentinels import Login, Sentinels

NONE = Login(None, None)


def test_the_parts_of_an_address() -> None:
    url = "redis+sentinel://me:p%40ss@a.example:26380,b.example,[::1]:1/my%20master/3"
    hosts = (("a.example", 26380), ("b.example", 26379), ("::1", 1))
    expected = Sentinels(hosts, "my master", 3, Login("me", "p@ss"), NONE, has_tls=False)
    assert Sentinels.parse(url) == expected
    short = Sentinels.parse("rediss+sentinel://a/m?sentinel_password=x%2Fy&sentinel_username=u")
    assert short == Sentinels((("a", 26379),), "m", 0, NONE, Login("u", "x/y"), has_tls=True)
    assert "x/y" not in repr(short)


@pytest.mark.parametrize(
    "url",
    [
        "redis://a/m",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+sentinel:///m",
        "redis+sentinel://a,/m",
        "redis+sentinel://a:0/m",
        "redis+sentinel://a:x/m",
        "redis+sentinel://a,b:70000/m",
        "redis+sentinel://a/m/x",
        "redis+sentinel://a/m/-1",
        "redis+sentinel://a/m?db=1",
        "redis+sentinel://a/m?sentinel_password",
        "redis+sentinel://a/m#x",
        "redis+sentinel://a,b,c,d,e,f/m",
    ],
)
def test_what_is_no_address_of_sentinels(url: str) -> None:
    with pytest.raises(ValueError, match="not the address of sentinels"):
        Sentinels.parse(url)
