"""The lines of ``millpond stats`` and ``millpond top``, from the documents of the server."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from proxy.cli.formatting import UNKNOWN, age, count, printable, table
from proxy.core.units import show_size

Numbers = Mapping[str, Any]

BAR: Final = 20
"""Columns of a progress bar."""


def stats_lines(stats: Numbers, width: int) -> list[str]:
    """Return the statistics, as ``/-/stats`` has them, in lines of at most ``width`` columns."""
    lines = [f"{head:<10} {printable(text)}" for head, text in _summary(stats)]
    heads = ("UPSTREAM", "STATE", "REQUESTS", "HITS", "SAVED", "PULLS LEFT")
    rows = [_upstream(name, numbers) for name, numbers in stats["upstreams"].items()]
    lines += ["", *table(heads, rows, width)]
    if stats["downloads"]:
        lines += ["", *download_lines(stats["downloads"], width)]
    return lines


def stats_line(stats: Numbers) -> str:
    """Return the most important statistics in one line, which begins with the time."""
    total, cache = stats["total"], stats["cache"]
    parts = [
        datetime.now().astimezone().strftime("%H:%M:%S"),
        f"{count(total['requests'], 'request')}, hit ratio {hit_ratio(total)}",
        f"{_signed(total['bytes_saved'])} saved",
        f"cache {show_size(cache['bytes'])} of {show_size(cache['limit_bytes'])}",
        count(len(stats["downloads"]), "download"),
    ]
    if down := [name for name, numbers in stats["upstreams"].items() if not numbers["up"]]:
        parts.append(f"down: {', '.join(down)}")
    return "; ".join(parts)


def top_lines(images: Sequence[Numbers], stats: Numbers, width: int) -> list[str]:
    """Return the images, clients and downloads with the most work, in lines."""
    rows = [
        (one["name"], f"{one['pulls']:,}", show_size(one["bytes"]), age(one["last_pull"]))
        for one in images
    ]
    lines = [*table(("IMAGE", "PULLS", "BYTES", "LAST PULL"), rows, width)]
    if stats["clients"]:
        heads = ("CLIENT", "REQUESTS", "BYTES", "DOWNLOADS", "SEEN")
        lines += ["", *table(heads, [_client(one) for one in stats["clients"]], width)]
    if stats["downloads"]:
        lines += ["", *download_lines(stats["downloads"], width)]
    return lines


def download_lines(downloads: Sequence[Numbers], width: int) -> Iterator[str]:
    """Yield the downloads in progress as a table with bars."""
    heads = ("DOWNLOAD", "PROGRESS", "BYTES", "READERS")
    return table(heads, [_download(one) for one in downloads], width)


def hit_ratio(numbers: Numbers) -> str:
    """Return the share of requests without errors that needed no body from upstream."""
    missed = numbers["misses"] + numbers["through"]
    served = numbers["requests"] - sum(numbers["errors"].values()) - numbers["left"]
    return f"{(served - missed) / served:.1%}" if served else UNKNOWN


def bar(done: int, total: int | None) -> str:
    """Return a bar with the percentage; without a known size, an empty text."""
    if not total:
        return ""
    share = min(1.0, done / total)
    full = math.floor(share * BAR)
    return f"{'#' * full}{'.' * (BAR - full)} {share:4.0%}"


def _summary(stats: Numbers) -> Iterator[tuple[str, str]]:
    total, cache = stats["total"], stats["cache"]
    errors = sum(total["errors"].values())
    sent, pulls = show_size(total["bytes_to_clients"]), count(total["pulls_saved"], "pull")
    limit, pinned = show_size(cache["limit_bytes"]), show_size(cache["pinned_bytes"])
    full = bar(cache["bytes"], cache["limit_bytes"])
    yield "hit ratio", f"{hit_ratio(total)} of {count(total['requests'], 'request')}"
    yield "saved", f"{_signed(total['bytes_saved'])} of {sent} sent, {pulls}"
    yield "cache", f"{show_size(cache['bytes'])} of {limit} {full}"
    yield "content", f"{count(cache['files'], 'file')}, {pinned} pinned"
    yield "oldest use", age(cache["oldest_use"])
    yield "errors", f"{errors:,}" + (f" ({_by_code(total['errors'])})" if errors else "")
    yield "running", age_of(stats["uptime_seconds"])


def age_of(seconds: float) -> str:
    """Return a duration in its two largest units, as ``3d 4h``."""
    minutes = int(seconds) // 60
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (int(seconds) % 60, "s")]
    shown = [f"{number}{unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0s"


def _upstream(name: str, numbers: Numbers) -> tuple[str, ...]:
    return (
        name,
        _state(numbers),
        f"{numbers['requests']:,}",
        hit_ratio(numbers),
        _signed(numbers["bytes_saved"]),
        _budget(numbers["rate_limit"]),
    )


def _state(numbers: Numbers) -> str:
    if numbers["offline"]:
        return "offline"
    if numbers["circuit"] != "closed":
        return f"down, circuit {numbers['circuit']}"
    return "up" if numbers["up"] else "down"


def _budget(limit: Numbers | None) -> str:
    """Return ``37 of 100, refills 14:10``."""
    if limit is None or limit["remaining"] is None:
        return UNKNOWN
    text = f"{limit['remaining']:,} of {limit['limit']:,}" if limit["limit"] else "?"
    if (refills := limit.get("refills_at")) is not None:
        text += f", refills {datetime.fromtimestamp(refills).astimezone():%H:%M}"
    return text


def _client(client: Numbers) -> tuple[str, ...]:
    return (
        client["client"],
        f"{client['requests']:,}",
        show_size(client["bytes"]),
        str(client["downloads"]),
        f"{age_of(client['seen_seconds_ago'])} ago",
    )


def _download(download: Numbers) -> tuple[str, ...]:
    name = "/".join(filter(None, (download["upstream"], download.get("repository"))))
    done, size = download["bytes"], download["size"]
    bytes_ = show_size(done) + (f" of {show_size(size)}" if size else "")
    digest = f"@{download['digest'][:19]}" if download.get("digest") else ""
    return f"{name}{digest}", bar(done, size), bytes_, str(download.get("readers", UNKNOWN))


def _signed(size: int) -> str:
    return f"-{show_size(-size)}" if size < 0 else show_size(size)


def _by_code(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {code}" for code, number in errors.items() if number)
