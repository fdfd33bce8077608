import pytest

from proxy.core.errors import NameInvalid, NameUnknown
from proxy.core.names import Repo, Target
from proxy.core.routing import Router
from proxy.settings import Settings

HERE = "127.0.0.1:5000"


@pytest.fixture
def router() -> Router:
    return Router(
        Settings(
            upstreams={
                "lab": {"url": "http://10.0.0.5:5000", "hostnames": ["lab.mirror.lan"]},
                "ghcr.io": {"aliases": ["gh"]},
            }
        )
    )


@pytest.mark.parametrize(
    ("repo", "host", "ns", "target"),
    [
        ("nginx", HERE, None, ("docker.io", "library/nginx")),
        ("library/nginx", HERE, None, ("docker.io", "library/nginx")),
        ("org/app", HERE, None, ("docker.io", "org/app")),
        ("nginx", HERE, "docker.io", ("docker.io", "library/nginx")),
        ("library/nginx", HERE, "index.docker.io", ("docker.io", "library/nginx")),
        ("library/nginx", HERE, "registry-1.docker.io", ("docker.io", "library/nginx")),
        ("library/nginx", HERE, "Docker.IO", ("docker.io", "library/nginx")),
        ("org/app", HERE, "ghcr.io", ("ghcr.io", "org/app")),
        ("org/app", HERE, "ghcr.io:443", ("ghcr.io", "org/app")),
        ("org/app", HERE, "10.0.0.5:5000", ("lab", "org/app")),
        ("app", HERE, "ghcr.io", ("ghcr.io", "app")),
        ("ghcr.io/org/app", HERE, None, ("ghcr.io", "org/app")),
        ("gh/org/app", HERE, None, ("ghcr.io", "org/app")),
        ("lab/a/b/c/d/e", HERE, None, ("lab", "a/b/c/d/e")),
        ("docker.io/nginx", HERE, None, ("docker.io", "library/nginx")),
        ("org/app", "lab.mirror.lan:5000", None, ("lab", "org/app")),
        ("org/app", "ghcr.io", None, ("ghcr.io", "org/app")),
        ("ghcr.io/org/app", "ghcr.io", None, ("ghcr.io", "org/app")),
        ("org/app", "lab.mirror.lan", "quay.io", ("quay.io", "org/app")),
        ("gh/org/app", HERE, "ghcr.io", ("ghcr.io", "org/app")),
        ("gh/org/app", HERE, "quay.io", ("quay.io", "gh/org/app")),
        ("my.app", HERE, None, ("docker.io", "library/my.app")),
    ],
)
def test_where_a_name_leads(
    router: Router, repo: str, host: str, ns: str | None, target: tuple[str, str]
) -> None:
    assert router.resolve(Repo(repo), host, ns) == Target(target[0], Repo(target[1]))


@pytest.mark.parametrize(
    ("repo", "ns"),
    [
        ("org/app", "evil.example.com"),
        ("org/app", "169.254.169.254"),
        ("org/app", "localhost:6379"),
        ("evil.example.com/org/app", None),
        ("localhost/app", None),
        ("127.0.0.1/app", None),
    ],
)
def test_t31_an_address_that_a_client_chose_is_refused(
    router: Router, repo: str, ns: str | None
) -> None:
    with pytest.raises(NameUnknown, match=r"upstreams: \{"):
        router.resolve(Repo(repo), HERE, ns)


def test_an_upstream_name_alone_is_no_repository(router: Router) -> None:
    assert router.resolve(Repo("gh"), HERE, None) == Target("docker.io", Repo("library/gh"))
    with pytest.raises(NameInvalid):
        router.resolve(Repo("gh/"), HERE, None)


def test_t20_library_is_added_for_docker_hub_only(router: Router) -> None:
    assert router.resolve(Repo("app"), HERE, "ghcr.io").repo == "app"
    assert router.resolve(Repo("a/b"), HERE, "docker.io").repo == "a/b"
