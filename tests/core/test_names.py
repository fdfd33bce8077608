import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import DigestInvalid, NameInvalid, PathNotFound, RegistryError, TagInvalid
from proxy.core.names import Kind, Route, matches, parse_digest, parse_path, parse_repo, sha256

DIGEST = "sha256:" + "a" * 64
component = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)
repos = st.lists(component, min_size=1, max_size=6).map("/".join).filter(lambda r: len(r) < 256)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)


@given(repos, tags)
def test_t22_every_legal_name_and_tag_is_parsed(repo: str, tag: str) -> None:
    assert parse_path(f"/v2/{repo}/manifests/{tag}") == Route(Kind.MANIFEST, repo, tag)
    assert parse_path(f"/v2/{repo}/blobs/{DIGEST}") == Route(Kind.BLOB, repo, DIGEST)
    assert parse_path(f"/v2/{repo}/tags/list") == Route(Kind.TAGS, repo, "")


@given(st.text(max_size=300))
def test_any_path_is_parsed_or_refused_with_an_error_of_ours(text: str) -> None:
    for path in (text, f"/v2/{text}", f"/v2/{text}/manifests/x", f"/v2/a/manifests/{text}"):
        try:
            route = parse_path(path)
        except RegistryError:
            continue
        assert ".." not in f"{route.repo}/{route.ref}".split("/")


def test_the_base() -> None:
    assert parse_path("/v2/") == parse_path("/v2") == Route(Kind.BASE, "", "")


def test_names_that_look_like_verbs() -> None:
    assert parse_path("/v2/manifests/blobs/manifests/tags").repo == "manifests/blobs"
    assert parse_path("/v2/tags/list/tags/list").repo == "tags/list"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v2/UPPER/manifests/x", NameInvalid),
        ("/v2/a//b/manifests/x", NameInvalid),
        ("/v2/a/../b/manifests/x", NameInvalid),
        ("/v2/" + "a" * 256 + "/manifests/x", NameInvalid),
        ("/v2/a/manifests/-x", TagInvalid),
        ("/v2/a/manifests/" + "x" * 129, TagInvalid),
        ("/v2/a/manifests/sha256:bad", DigestInvalid),
        ("/v2/a/manifests/sha256:" + "A" * 64, DigestInvalid),
        ("/v2/a/blobs/latest", DigestInvalid),
        ("/v2/a/blobs/md5:" + "a" * 32, DigestInvalid),
        ("/v2/a/tags/else", PathNotFound),
        ("/v2/a", PathNotFound),
        ("/v2/manifests/x", PathNotFound),
        ("/v1/a/manifests/x", PathNotFound),
        ("/", PathNotFound),
    ],
)
def test_what_breaks_the_grammar_is_refused(path: str, error: type[RegistryError]) -> None:
    with pytest.raises(error):
        parse_path(path)


def test_sha512_is_a_digest_too() -> None:
    assert parse_digest("sha512:" + "0" * 128)
    with pytest.raises(DigestInvalid, match="128"):
        parse_digest("sha512:" + "0" * 64)


def test_matches_tells_right_from_wrong_bytes() -> None:
    assert matches(sha256(b"x"), b"x")
    assert not matches(sha256(b"x"), b"y")


def test_a_long_bad_name_is_not_repeated_whole() -> None:
    with pytest.raises(NameInvalid) as caught:
        parse_repo("!" * 200)
    assert len(caught.value.message) < 150
