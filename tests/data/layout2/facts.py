"""What the index of layout 2 says after a restart, as JSON values.

Like ``make`` it runs on the version that wrote layout 2 only.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from proxy.index.listings import TagLists
from proxy.index.local import LocalIndex
from proxy.names import Target
from proxy.records import BlobRecord

Facts = dict[str, Any]
NOTES = ("pins", "in use", "verify", "ceiling")


async def read(storage: Path) -> Facts:
    """Open the index in `storage`, which changes its files, and return all facts in it."""
    async with _opened(storage) as (index, lists):
        return {
            "layout": json.loads((storage / "millpond.json").read_text())["layout"],
            "tags": await _tags(index),
            "blobs": [_blob(index, record) for record in index.coldest()],
            "holders": await _holders(index),
            "referrers": await _referrers(index),
            "tag_lists": await _tag_lists(lists),
            "notes": {name: await index.note(name) for name in NOTES},
            "spool": sorted(path.name for path in (storage / "spool").iterdir()),
            "quarantine": sorted(path.name for path in (storage / "quarantine").iterdir()),
        }


@asynccontextmanager
async def _opened(storage: Path) -> AsyncIterator[tuple[LocalIndex, TagLists]]:
    def fail() -> None:
        raise AssertionError("the index has trouble")

    rows = storage / "index"
    async with (
        LocalIndex(rows, clock=time.time, on_trouble=fail) as index,
        TagLists(rows / "listings", clock=time.time, on_trouble=fail) as lists,
    ):
        await index.ready()
        assert not index.dropped_rows
        assert not index.damaged()
        yield index, lists


async def _tags(index: LocalIndex) -> list[Facts]:
    """Return every tag with its history; `now` is None if upstream no longer has the tag."""
    found = []
    for batch in index._tables.all_tags():
        for row in batch:
            now = await index.tag(row.target, row.tag)
            history = await index.history(row.target, row.tag)
            found.append(
                {
                    **_named(row.target),
                    "tag": row.tag,
                    "now": now
                    and {
                        "media_type": now.descriptor.media_type,
                        "digest": now.descriptor.digest,
                        "size": now.descriptor.size,
                        "checked_at": now.checked_at,
                    },
                    "history": [
                        {
                            "digest": one.digest,
                            "first_seen": one.first_seen,
                            "last_seen": one.last_seen,
                        }
                        for one in history
                    ],
                }
            )
    return sorted(found, key=lambda fact: (fact["upstream"], fact["repository"], fact["tag"]))


def _blob(index: LocalIndex, record: BlobRecord) -> Facts:
    """Return held content; `children` is None for a manifest that is not understood."""
    is_known = not index.is_incomplete(record.digest)
    children = [
        {"digest": child.digest, "size": child.size} for child in index.children(record.digest)
    ]
    return {
        "digest": record.digest,
        "size": record.size,
        "media_type": record.media_type,
        "used_at": record.used_at,
        "is_public": record.is_public,
        "children": children if is_known else None,
    }


async def _holders(index: LocalIndex) -> dict[str, list[Facts]]:
    """Return the repositories of each digest, held or not, the newest last."""
    digests = {digest for batch in index._tables.linked() for digest in batch}
    return {
        digest: [_named(target) for target in await index.holders(digest)]
        for digest in sorted(digests)
    }


async def _referrers(index: LocalIndex) -> list[Facts]:
    """Return what refers to each manifest: as upstream says, as held manifests say, and both."""
    found = []
    for batch in index._tables.subjects():
        for row in batch:
            record = await index.referrers(row.target, row.subject)
            stored = index._tables._referrers_row(row.target, row.subject)
            assert stored.checked_at == record.checked_at
            found.append(
                {
                    **_named(row.target),
                    "subject": row.subject,
                    "checked_at": record.checked_at,
                    "told_by_upstream": stored.told,
                    "told_by_held": stored.held,
                    "entries": list(record.entries),
                }
            )
    return sorted(found, key=lambda fact: (fact["upstream"], fact["repository"], fact["subject"]))


async def _tag_lists(lists: TagLists) -> list[Facts]:
    found = []
    for target in sorted(lists._known_sizes()):
        kept, row = await lists.get(target), lists._row(target)
        assert kept is not None
        assert row is not None
        found.append(
            {
                **_named(target),
                "tags": list(kept.tags),
                "is_complete": kept.is_complete,
                "seen_at": kept.seen_at,
                "walked": row.walked,
                "further": row.further,
            }
        )
    return found


def _named(target: Target) -> Facts:
    return {"upstream": target.upstream, "repository": target.repo}
