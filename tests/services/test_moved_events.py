"""Watched tags and webhooks emit `tag-moved` without a pull."""

from proxy.runtime.events import EventKind
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Start, until
from tests.services.test_watch import passed

OLD, NEW = content.image("old"), content.image("new")


async def test_a_watched_tag_that_moves_is_an_event_without_a_pull(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add("acme/app", OLD, "1")
    proxy = await start(watch={"images": ["acme/app:1"], "every": "1s"})
    await passed(proxy, clock)
    upstream.retag("acme/app", "1", NEW)
    await passed(proxy, clock)
    events = proxy.app.events
    await until(lambda: len(events.recent([EventKind.TAG_MOVED])) == 2)
    last = events.recent([EventKind.TAG_MOVED])[-1]
    assert last.subject == "docker.io/acme/app:1"
    assert dict(last.data) == {"from": OLD.digest, "to": NEW.digest}
