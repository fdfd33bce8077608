from math import inf
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError
from proxy.settings import Settings, loading

ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "absent.yaml")


def load(tmp_path: Path, text: str, **flags: object) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return loading.load(file, flags)


def refused(tmp_path: Path, text: str, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **flags)
    return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()


def test_nothing_is_needed() -> None:
    settings = loading.load(None)
    assert (settings.host, settings.port) == ("127.0.0.1", 5000)
    assert settings.default_upstream == "docker.io"
    assert settings.storage.max_size.of(0) == 50 * 1024**3
    assert {"ghcr.io", "quay.io", "gcr.io", "registry.k8s.io"} < set(settings.upstreams)
    assert {"mcr.microsoft.com", "public.ecr.aws", "docker.io"} < set(settings.upstreams)


def test_built_in_upstreams_are_completed_not_replaced(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "upstreams:\n  docker.io: {username: me, password: secret}\n  quay.io:\n"
        "  lab: {url: 'http://10.0.0.5:5000/'}\n",
    )
    hub = settings.upstreams["docker.io"]
    assert (hub.url, hub.library_prefix, hub.username) == (
        "https://registry-1.docker.io",
        True,
        "me",
    )
    assert "quay.io" not in settings.upstreams
    assert settings.upstreams["lab"].url == "http://10.0.0.5:5000"


def test_environment_beats_file_and_flags_beat_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLPOND_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("MILLPOND_STORAGE__MAX_SIZE", "2GiB")
    monkeypatch.setenv("MILLPOND_UPSTREAMS__docker.io__USERNAME", "me")
    monkeypatch.setenv("MILLPOND_UPSTREAMS__docker.io__PASSWORD", "secret")
    settings = load(
        tmp_path,
        "listen: 127.0.0.1:1\noffline: false\nstorage: {max_size: 1GiB, path: /a}\n",
        offline=True,
        listen="127.0.0.1:3",
    )
    assert settings.port == 3
    assert settings.offline
    assert settings.storage.max_size.of(0) == 2 * 1024**3
    assert settings.storage.path == Path("/a")
    assert settings.upstreams["docker.io"].username == "me"


def test_variables_in_any_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "s3cret")
    settings = load(
        tmp_path,
        "upstreams: {docker.io: {username: '${HUB_USER:-me}', password: 'x${HUB_TOKEN}'}}",
    )
    hub = settings.upstreams["docker.io"]
    assert hub.username == "me"
    assert hub.password is not None
    assert hub.password.get_secret_value() == "xs3cret"


def test_an_escaped_variable_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "s3cret")
    text = "upstreams: {docker.io: {username: me, password: 'x$${HUB_TOKEN}'}}"
    password = load(tmp_path, text).upstreams["docker.io"].password
    assert password is not None
    assert password.get_secret_value() == "x${HUB_TOKEN}"


def test_variables_that_kubernetes_sets_for_a_service_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_5000_TCP_ADDR"):
        monkeypatch.setenv(f"MILLPOND_{name}", "10.0.0.1")
    assert load(tmp_path, "listen: 127.0.0.1:1").port == 1


def test_sizes_and_durations(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "storage: {max_size: 1048576}\n"
        "freshness: {tag_ttl: 30s, stale_while_revalidate: 12h, stale_if_error: forever, "
        "negative_ttl: 0}\n"
        "upstreams: {ghcr.io: {freshness: {tag_ttl: 30d}}}",
    )
    assert settings.storage.max_size.of(0) == 1048576
    assert settings.freshness.stale_while_revalidate == 43200
    assert settings.freshness_of("ghcr.io").tag_ttl == 30 * 86400
    assert settings.freshness_of("ghcr.io").stale_if_error == inf
    assert settings.freshness_of("docker.io").tag_ttl == 30


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("listen: nowhere", ["config.yaml:1: listen: not an address; write 127.0.0.1:5000 or [::1]:5000"]),
        ("\n\nlisten: 1.1.1.1:99999", ["config.yaml:3: listen: not an address; write 127.0.0.1:5000 or [::1]:5000"]),
        ("trusted_proxies: [10.0.0.0/8, proxy.example]", ["config.yaml:1: trusted_proxies: 'proxy.example' is no address or network; write 10.0.0.5 or 10.0.0.0/8"]),
        ("trusted_proxies: [10.0.0.5/8]", ["config.yaml:1: trusted_proxies: '10.0.0.5/8' is no address or network; write 10.0.0.5 or 10.0.0.0/8"]),
        ("storage:\n  max_sise: 1GiB", ["config.yaml:2: storage.max_sise: no such setting; did you mean max_size?"]),
        ("storage:\n  max_size: lots", ["config.yaml:2: storage.max_size: not a size; write 500MiB, 50GiB, or 80% of the file system"]),
        ("storage:\n  max_size: true", ["config.yaml:2: storage.max_size: not a size; write 500MiB, 50GiB, or 80% of the file system"]),
        ("storage:\n  max_size: 1,5TiB", ["config.yaml:2: storage.max_size: not a size; write 500MiB, 50GiB, or 80% of the file system"]),
        ("freshness:\n  tag_ttl: 5 minutes", ["config.yaml:2: freshness.tag_ttl: not a duration; write 30s, 5m, 12h, 30d or forever"]),
        ("offline: perhaps", ["config.yaml:1: offline: expected true, false or auto"]),
        ("tls: {cert_file: a}", ["config.yaml:1: tls.key_file: must be set"]),
        ("upstreams:\n  x:\n    username: a", ["config.yaml:2: upstreams.x.url: must be set"]),
        ("upstreams:\n  x: {url: ftp://x}", ["config.yaml:2: upstreams.x.url: not an address; write https://registry.example.com"]),
        ("upstreams: {docker.io: {username: me}}", ["config.yaml:1: upstreams.docker.io: credentials are a username with a password or a password_file"]),
        ("upstreams:\n  'a b': {url: http://x}", ["config.yaml:1: upstreams: 'a b' is not a host name; write ghcr.io, lab or 10.0.0.5:5000"]),
        ("upstreams: {lab: {url: http://x, aliases: [ghcr.io]}}", ["config.yaml:1: upstreams: ghcr.io and lab both claim the name ghcr.io"]),
        ("default_upstream: nope", ["config.yaml:1: default_upstream: 'nope' is not among the upstreams: docker.io, ghcr.io, quay.io, gcr.io, registry.k8s.io, mcr.microsoft.com, public.ecr.aws"]),
        ("a: b: c", ["config.yaml:1: not valid YAML: mapping values are not allowed here"]),
        ("- 1", ["config.yaml: expected settings such as 'listen: 127.0.0.1:5000'"]),
        ("log:\n  level: info\n  level: debug", ["config.yaml:3: level: this key is written twice"]),
        ("log: &a\n  level: *a", ["config.yaml:1: an alias to a value around it"]),
        (ALIASES, ["config.yaml:6: more than 100,000 values"]),
        ("log:\n  level: ${NO_SUCH_VARIABLE}", ["config.yaml:2: log.level: ${NO_SUCH_VARIABLE} is not set in the environment"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_place_and_remedy(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    assert refused(tmp_path, text) == lines


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    assert len(refused(tmp_path, "listen: x\noffline: perhaps\nfoo: 1")) == 3


def test_the_faulty_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_STORAGE__MAX_SIZE", "lots")
    [flag, variable] = sorted(refused(tmp_path, "", listen="x"))
    assert variable.startswith("MILLPOND_STORAGE__MAX_SIZE: storage.max_size: not a size")
    assert flag.startswith("--listen: not an address")


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_LISTN", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="MILLPOND_LISTN: no such setting; did you mean listen"):
        loading.load(None)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        loading.load(tmp_path / "none.yaml")


def test_no_error_repeats_a_secret(tmp_path: Path) -> None:
    text = "upstreams: {docker.io: {username: me, password: hunter2, password_file: /x}}"
    assert "hunter2" not in "\n".join(refused(tmp_path, text))
    text = "upstreams: {docker.io: {url: 'https://me:hunter2@x'}}"
    assert "hunter2" not in "\n".join(refused(tmp_path, text))
    text = "upstreams: {docker.io: {username: me, password: [hunter2]}}"
    assert "hunter2" not in "\n".join(refused(tmp_path, text))


# Old names


def warned(tmp_path: Path, text: str, **flags: object) -> tuple[Settings, list[str]]:
    file, warnings = tmp_path / "config.yaml", list[str]()
    file.write_text(text)
    settings = loading.load(file, flags, warnings.append)
    return settings, [line.replace(f"{tmp_path}/", "") for line in warnings]


SAYS = "the old name works in this version"


def test_old_names_in_a_file_work_and_are_named(tmp_path: Path) -> None:
    settings, warnings = warned(
        tmp_path,
        "storage:\n  finish_from: 0.5\nparallel: {start_from: 1MiB}\n"
        "prefetch:\n  at_once: 3\n  give_up: 1s\nfreshness: {reserve: 0.2}\n"
        "upstreams:\n  lab:\n    url: http://x\n    freshness:\n      reserve: 0.3\n",
    )
    assert settings.storage.min_complete_ratio == 0.5
    assert settings.parallel.min_blob_size == 1024**2
    assert (settings.prefetch.concurrency, settings.prefetch.idle_timeout) == (3, 1)
    assert settings.freshness_of("docker.io").rate_limit_reserve == 0.2
    assert settings.freshness_of("lab").rate_limit_reserve == 0.3
    assert warnings == [
        f"config.yaml:2: storage.finish_from: renamed to storage.min_complete_ratio; {SAYS}",
        f"config.yaml:3: parallel.start_from: renamed to parallel.min_blob_size; {SAYS}",
        f"config.yaml:5: prefetch.at_once: renamed to prefetch.concurrency; {SAYS}",
        f"config.yaml:6: prefetch.give_up: renamed to prefetch.idle_timeout; {SAYS}",
        f"config.yaml:7: freshness.reserve: renamed to freshness.rate_limit_reserve; {SAYS}",
        (
            "config.yaml:12: upstreams.lab.freshness.reserve: renamed to "
            f"upstreams.lab.freshness.rate_limit_reserve; {SAYS}"
        ),
    ]


def test_an_old_name_in_the_environment_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLPOND_STORAGE__FINISH_FROM", "0.5")
    monkeypatch.setenv("MILLPOND_PREFETCH", '{"give_up": "1s"}')
    settings, warnings = warned(tmp_path, "storage: {min_complete_ratio: 0.1}")
    assert settings.storage.min_complete_ratio == 0.5
    assert settings.prefetch.idle_timeout == 1
    assert sorted(warnings) == [
        f"MILLPOND_PREFETCH: prefetch.give_up: renamed to prefetch.idle_timeout; {SAYS}",
        (
            "MILLPOND_STORAGE__FINISH_FROM: storage.finish_from: renamed to "
            f"storage.min_complete_ratio; {SAYS}"
        ),
    ]


def test_an_old_name_may_be_one_of_another_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, [warning] = warned(
        tmp_path, "access: {anonymous: false}\ntrusted_proxies: [192.0.2.1]\n"
    )
    assert settings.access.trusted_proxies == ("192.0.2.1",)
    assert not settings.access.anonymous
    assert warning == (f"config.yaml:2: trusted_proxies: renamed to access.trusted_proxies; {SAYS}")
    monkeypatch.setenv("MILLPOND_TRUSTED_PROXIES", '["192.0.2.2"]')
    settings, [warning] = warned(tmp_path, "")
    assert settings.access.trusted_proxies == ("192.0.2.2",)
    assert warning.startswith("MILLPOND_TRUSTED_PROXIES: trusted_proxies: renamed to")


def test_an_old_name_in_flags(tmp_path: Path) -> None:
    settings, [warning] = warned(tmp_path, "", storage={"finish_from": 1})
    assert settings.storage.min_complete_ratio == 1
    assert warning.startswith("flag: storage.finish_from: renamed to storage.min_complete_ratio;")


def test_current_names_give_no_warning(tmp_path: Path) -> None:
    assert warned(tmp_path, "storage: {min_complete_ratio: 0.5}")[1] == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("storage:\n  min_complete_ratio: 0\n  finish_from: 0", "config.yaml:3: storage.finish_from: the old name of min_complete_ratio, which is set too; remove it"),
        ("trusted_proxies: [a]\naccess:\n  trusted_proxies: []", "config.yaml:1: trusted_proxies: the old name of access.trusted_proxies, which is set too; remove it"),
        ("listen: x:1\ntrusted_proxies: [a]", "config.yaml:2: trusted_proxies: 'a' is no address or network; write 10.0.0.5 or 10.0.0.0/8"),
        ("prefetch:\n  give_up: soon", "config.yaml:2: prefetch.give_up: not a duration; write 30s, 5m, 12h, 30d or forever"),
        ("prefetch:\n  reserve: 1", "config.yaml:2: prefetch.reserve: no such setting; known here: blobs, max_bytes, concurrency, idle_timeout"),
        ("offline: {reserve: 1}", "config.yaml:1: offline: expected true, false or auto"),
    ],
)  # fmt: skip
def test_a_fault_of_an_old_name_is_named_as_it_is_written(
    tmp_path: Path, text: str, line: str
) -> None:
    assert refused(tmp_path, text) == [line]


def test_both_names_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_STORAGE__FINISH_FROM", "0.5")
    monkeypatch.setenv("MILLPOND_STORAGE__MIN_COMPLETE_RATIO", "0.5")
    with pytest.raises(
        ConfigError, match=r"^MILLPOND_STORAGE__FINISH_FROM: storage\.finish_from: "
    ):
        loading.load(None)


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ("[mnt/usb]", "not an absolute path"),
        ("[/srv/cache]", "where this cache itself is"),
        ("[/srv/cache/blobs]", "where this cache itself is"),
        ("[/srv]", "where this cache itself is"),
        ("[/mnt/usb, /mnt/usb]", "named twice"),
    ],
)
def test_a_fallback_that_makes_no_sense_is_refused(tmp_path: Path, paths: str, reason: str) -> None:
    [line] = refused(tmp_path, f"storage: {{path: /srv/cache}}\nfallback: {paths}")
    assert reason in line
