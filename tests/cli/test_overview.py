"""The numbers of the server in words."""

from typing import Any

from proxy.cli import overview

COUNTERS = {
    "requests": 110, "misses": 8, "through": 2, "left": 0, "errors": {"UNAVAILABLE": 10},
    "bytes_saved": 3 * 1024**3, "bytes_to_clients": 4 * 1024**3, "pulls_saved": 40,
}  # fmt: skip
UP = COUNTERS | {"up": True, "offline": False, "circuit": "closed", "rate_limit": None}
DOWNLOAD = {"upstream": "docker.io", "bytes": 512, "size": 1024}


def stats(**changes: Any) -> dict[str, Any]:
    cache = {"bytes": 25, "limit_bytes": 100, "pinned_bytes": 0, "files": 3, "oldest_use": None}
    return {
        "uptime_seconds": 90061.0, "total": COUNTERS, "upstreams": {"docker.io": UP},
        "cache": cache, "downloads": [], "clients": [],
    } | changes  # fmt: skip


def cells(lines: list[str], name: str) -> list[str]:
    """Return the cells of the row that begins with a name."""
    [row] = [line for line in lines if line.startswith(name)]
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def test_the_hit_ratio_counts_answers_without_errors() -> None:
    assert overview.hit_ratio(COUNTERS) == "90.0%"
    assert (
        overview.hit_ratio(COUNTERS | {"requests": 0, "errors": {}, "misses": 0, "through": 0})
        == "-"
    )


def test_the_summary_has_what_an_operator_looks_for() -> None:
    lines = overview.stats_lines(stats(), 100)
    assert lines[0] == "hit ratio  90.0% of 110 requests"
    assert lines[1] == "saved      3.0GiB of 4.0GiB sent, 40 pulls"
    assert "#####............... " in lines[2]
    assert "errors     10 (10 UNAVAILABLE)" in lines
    assert "running    1d 1h" in lines


def test_an_upstream_says_how_it_is_and_what_is_left() -> None:
    budget = {"limit": 100, "remaining": 37, "refills_at": 0.0}
    upstreams = {
        "docker.io": UP | {"rate_limit": budget},
        "ghcr.io": UP | {"up": False, "circuit": "open"},
        "quay.io": UP | {"offline": True},
        "gcr.io": UP | {"up": False},
    }
    lines = overview.stats_lines(stats(upstreams=upstreams), 200)
    assert cells(lines, "docker.io")[-1].startswith("37 of 100, refills ")
    states = [cells(lines, name)[1] for name in upstreams]
    assert states == ["up", "down, circuit open", "offline", "down"]


def test_one_line_names_what_is_down() -> None:
    line = overview.stats_line(stats(upstreams={"docker.io": UP, "ghcr.io": UP | {"up": False}}))
    assert "hit ratio 90.0%" in line
    assert line.endswith("0 downloads; down: ghcr.io")


def test_a_download_has_a_bar() -> None:
    whole = {"repository": "library/nginx", "digest": f"sha256:{'a' * 64}", "readers": 3}
    lines = overview.stats_lines(stats(downloads=[DOWNLOAD | whole]), 200)
    row = cells(lines, "docker.io/library/nginx@sha256:aaaaaaaaaaaa")
    assert row[1].startswith("##########..........")
    assert row[-2:] == ["512B of 1.0KiB", "3"]


def test_a_size_that_is_not_known_has_no_bar() -> None:
    assert overview.bar(10, None) == ""
    assert overview.bar(200, 100) == f"{'#' * 20} 100%"


def test_top_has_images_clients_and_downloads() -> None:
    client = {
        "client": "10.0.0.1",
        "requests": 5,
        "bytes": 0,
        "downloads": 1,
        "seen_seconds_ago": 61.0,
    }
    image = {"name": "docker.io/library/nginx:1", "pulls": 1234, "bytes": 2048, "last_pull": None}
    lines = overview.top_lines([image], stats(clients=[client], downloads=[DOWNLOAD]), 200)
    assert cells(lines, image["name"])[1:] == ["1,234", "2.0KiB", "-"]
    assert cells(lines, "10.0.0.1")[-1] == "1m 1s ago"
    assert any(line.startswith("DOWNLOAD") for line in lines)


def test_lines_fit_a_narrow_terminal() -> None:
    for line in overview.stats_lines(stats(), 60):
        assert len(line) <= 60
