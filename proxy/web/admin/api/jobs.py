"""Long operations as jobs: starts, lists and cancels them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from proxy.core.errors import RegistryError, RequestInvalid
from proxy.core.selection import is_pattern
from proxy.core.units import parse_size
from proxy.services.jobs import Job, JobFailedError, Jobs, Work, follow
from proxy.services.pull import Platforms, PullOptions
from proxy.web.admin import images
from proxy.web.admin.actions import Services
from proxy.web.admin.api.protection import ImageName, Name
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, NoParams, Params, Route

MAX_SHOWN: Final = 1000
"""Maximum number of entries in each list of a dry run."""


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(ge=0, le=2**62),
    WithJsonSchema({"type": ["integer", "string"], "description": "Bytes, or as 10GiB."}),
]


class DropParams(Params):
    """The images to drop."""

    match: Annotated[Name, Field(description="An image, a repository or a pattern.")]
    dry_run: bool = False


class PullParams(Params):
    """The image to pull; without platforms, all of them."""

    image: ImageName
    platforms: Annotated[tuple[Name, ...], Field(max_length=50)] = ()
    referrers: bool = False


class VerifyParams(Params):
    """Parameters of a verification: ``rate`` is bytes per second, 0 means no limit."""

    repair: bool = False
    rate: Size = 0


class EvictParams(Params):
    """The number of disk bytes to free."""

    bytes: Size
    dry_run: bool = False


class WarmParams(Params):
    """Images and patterns to pull."""

    images: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    platforms: Annotated[tuple[Name, ...], Field(max_length=50)] = ()
    referrers: bool = False


class JobParams(Params):
    """One job."""

    id: Annotated[str, Field(max_length=64)]


class Started(Model):
    """The id of the job that was started."""

    job: str


class Progress(Model):
    """The progress of a job; ``total`` is null while it is unknown."""

    done: int
    total: int | None


class JobState(Model):
    """A job; ``state`` is running, done, failed or cancelled."""

    id: str
    kind: str
    what: str
    state: str
    started: float
    ended: float | None
    progress: Progress
    result: dict[str, Any]
    error: str | None


class JobList(Model):
    """The jobs, the latest first."""

    jobs: list[JobState]


class WouldDrop(Model):
    """The effect of a drop; ``images`` are the first thousand."""

    images: list[dict[str, Any]]
    dropped: int
    refused: int
    blobs: int
    bytes: int


class WouldEvict(Model):
    """The effect of an eviction; ``content`` and ``images`` are the first thousand."""

    content: list[dict[str, Any]]
    images: list[dict[str, Any]]
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class JobRoutes:
    """Starts, lists and cancels jobs."""

    services: Services
    jobs: Jobs

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        one = "jobs/{id}"
        return [
            Route("GET", "jobs", NoParams, JobList, self._list, "List the jobs."),
            Route("GET", one, JobParams, JobState, self._get, "Show a job."),
            Route("DELETE", one, JobParams, JobState, self._cancel, "Cancel a job."),
            Route("POST", "pull", PullParams, Started, self._pull, "Pull an image.", status=202),
            Route("POST", "warm", WarmParams, Started, self._warm, "Pull images.", status=202),
            Route("POST", "verify", VerifyParams, Started, self._verify, "Verify.", status=202),
            Route(
                "POST",
                "drop",
                DropParams,
                Started,
                self._drop,
                "Drop images.",
                status=202,
                dry=WouldDrop,
            ),
            Route(
                "POST",
                "evict",
                EvictParams,
                Started,
                self._evict,
                "Free disk space.",
                status=202,
                dry=WouldEvict,
            ),
        ]

    async def _list(self, _: NoParams, __: Caller) -> Model:
        return JobList(jobs=[_shown(job) for job in self.jobs.all()])

    async def _get(self, params: JobParams, _: Caller) -> Model:
        return _shown(self.jobs.get(params.id))

    async def _cancel(self, params: JobParams, _: Caller) -> Model:
        job = self.jobs.get(params.id)
        await self.jobs.cancel(job)
        return _shown(job)

    async def _pull(self, params: PullParams, _: Caller) -> Model:
        image = self.services.image(params.image)
        if image.target is None:
            raise RequestInvalid(f"{image}: name the repository too, as nginx@{image.digest}")
        wanted = PullOptions(Platforms(params.platforms), with_referrers=params.referrers)

        async def work(job: Job) -> None:
            await follow(job, self.services.puller.run(image, wanted))
            if job.result.get("digest") is None:
                raise JobFailedError(str(job.result["events"][0]["reason"]))

        return self._started("pull", str(image), work)

    async def _warm(self, params: WarmParams, _: Caller) -> Model:
        wanted = PullOptions(Platforms(params.platforms), with_referrers=params.referrers)

        async def work(job: Job) -> None:
            job.result |= {"whole": 0, "incomplete": 0, "fetched_bytes": 0}
            names = await self._expanded(job, params.images)
            job.total = len(names)
            for name in names:
                problem = await self._warmed(job, name, wanted)
                job.result["whole" if problem is None else "incomplete"] += 1
                if problem is not None:
                    job.add({"event": "incomplete", "image": name, "reason": problem})
                job.done += 1

        return self._started("warm", ", ".join(params.images)[:200], work)

    async def _expanded(self, job: Job, names: list[str]) -> list[str]:
        """Return the images that names and patterns select, once each."""
        found: dict[str, None] = {}
        for name in names:
            if not is_pattern(name):
                found.setdefault(name)
                continue
            expanded = await self.services.expansion.images(self.services.selector(name))
            found.update(dict.fromkeys(expanded.images))
            for note in expanded.notes:
                job.add({"event": "note", "pattern": name, "reason": note})
            for problem in expanded.problems:
                job.result["incomplete"] += 1
                job.add({"event": "incomplete", "image": name, "reason": problem})
        return list(found)

    async def _warmed(self, job: Job, name: str, wanted: PullOptions) -> str | None:
        """Pull one image; return why it is incomplete, None if it is complete."""
        try:
            pulled = await self.services.puller.outcome(self.services.image(name), wanted)
        except RegistryError as error:
            return error.message
        job.result["fetched_bytes"] += pulled.fetched_bytes
        return pulled.problems[0] if pulled.problems else None

    async def _verify(self, params: VerifyParams, _: Caller) -> Model:
        verifier = self.services.verifier

        async def work(job: Job) -> None:
            await follow(job, verifier.run(repair=params.repair, rate=params.rate, restart=False))

        return self._started("verify", "all content", work)

    async def _drop(self, params: DropParams, _: Caller) -> Model:
        selector, dropper = self.services.selector(params.match), self.services.dropper
        if params.dry_run:
            return await _would_drop(dropper.preview(selector))
        return self._started("drop", params.match, lambda job: follow(job, dropper.drop(selector)))

    async def _evict(self, params: EvictParams, _: Caller) -> Model:
        content = self.services.content
        if params.dry_run:
            coldest = await content.evictor.coldest(params.bytes)
            return await _would_evict(images.would_evict(content, coldest))

        async def work(job: Job) -> None:
            job.total = params.bytes
            blobs, freed = await content.evictor.evict(params.bytes)
            job.result |= {"blobs": blobs, "bytes": freed}
            job.done = freed

        return self._started("evict", f"{params.bytes} bytes", work)

    def _started(self, kind: str, what: str, work: Work) -> Started:
        return Started(job=self.jobs.start(kind, what, work).id)


def _shown(job: Job) -> JobState:
    return JobState(
        id=job.id,
        kind=job.kind,
        what=job.what,
        state=job.state,
        started=job.started,
        ended=job.ended,
        progress=Progress(done=job.done, total=job.total),
        result=job.result,
        error=job.error,
    )


async def _would_drop(events: AsyncGenerator[dict[str, Any]]) -> WouldDrop:
    shown: list[dict[str, Any]] = []
    done: dict[str, Any] = {}
    async for event in events:
        if event.pop("event") == "done":
            done = event
        elif len(shown) < MAX_SHOWN:
            shown.append(event)
    return WouldDrop(
        images=shown,
        dropped=done["images"],
        refused=done["refused"],
        blobs=done["blobs"],
        bytes=done["bytes"],
    )


async def _would_evict(lines: AsyncGenerator[dict[str, Any]]) -> WouldEvict:
    content: list[dict[str, Any]] = []
    losers: list[dict[str, Any]] = []
    line: dict[str, Any] = {}
    async for line in lines:
        kept = content if "digest" in line else losers
        if len(kept) < MAX_SHOWN and ("digest" in line or "image" in line):
            kept.append(line)
    return WouldEvict(content=content, images=losers, blobs=line["blobs"], bytes=line["bytes"])
