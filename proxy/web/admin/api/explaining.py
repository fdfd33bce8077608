"""Explains how Millpond handles an image."""

from typing import Annotated, Final

from pydantic import Field

from proxy.access.principals import Principal
from proxy.access.rules import Action
from proxy.core.errors import RequestInvalid
from proxy.core.names import Target
from proxy.core.routing import Router
from proxy.policies import Applied
from proxy.services.explain import Explainer, facts
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, Params, Route
from proxy.web.gate import Guards

Text = Annotated[str, Field(min_length=1, max_length=1024)]


class ExplainParams(Params):
    """An image, and optionally how and by whom it is requested."""

    image: Annotated[Text, Field(description="A name with a tag or digest, as nginx:1.27.")]
    ns: Annotated[Text | None, Field(description="The ns of a request for this path.")] = None
    host: Annotated[Text | None, Field(description="The Host of a request for this path.")] = None
    user: Annotated[Text | None, Field(description="Who pulls it; also as USER,GROUP.")] = None
    address: Annotated[Text | None, Field(description="The address of the client.")] = None


class Verdict(Model):
    """Whether a client may pull an image, and the rule. ``user`` None: an anonymous client."""

    user: str | None
    groups: list[str]
    address: str | None
    allowed: bool
    rule: int | None
    text: str
    because: str | None
    login_helps: bool


class Policy(Model):
    """A policy that covers the image; ``denied`` None: unknown until a client pulls the image."""

    name: str
    demands: list[str]
    audit: bool
    denied: bool | None
    reason: str | None


class Explained(Model):
    """The explanation of an image. ``access`` has anonymous clients first."""

    image: str
    route: facts.Route
    registry: facts.Registry
    held: facts.Held
    freshness: facts.Freshness | None
    pull: facts.Pull
    offline: facts.Offline
    access: list[Verdict]
    policies: list[Policy]
    keeping: facts.Keeping


class Explaining:
    """The route that explains images."""

    def __init__(self, explainer: Explainer, router: Router, guards: Guards) -> None:
        self._explainer = explainer
        self._router = router
        self._guards = guards
        self.routes: Final[tuple[AnyRoute, ...]] = (
            Route(
                "GET",
                "explain",
                ExplainParams,
                Explained,
                self._explain,
                "Explain how Millpond handles an image, and why.",
            ),
        )

    async def _explain(self, params: ExplainParams, _: Caller) -> Explained:
        image, choice = self._router.choose_image(params.image, params.host or "", params.ns)
        if choice is None:
            raise RequestInvalid(f"{image}: name the repository too, as nginx@{image.digest}")
        found = await self._explainer.explain(image, choice)
        askers = [Principal(params.address)]
        if params.user is not None:
            user, *groups = params.user.split(",")
            askers.append(Principal(params.address, user, groups=frozenset(groups)))
        applied = self._guards.policies.applied(choice.target, found.held.digest)
        return Explained(
            image=found.image,
            route=found.route,
            registry=found.registry,
            held=found.held,
            freshness=found.freshness,
            pull=found.pull,
            offline=found.offline,
            access=[self._verdict(asker, choice.target) for asker in askers],
            policies=[_policy(one) for one in applied],
            keeping=found.keeping,
        )

    def _verdict(self, asker: Principal, target: Target) -> Verdict:
        access = self._guards.access
        principal = access.complete(asker)
        decision = access.preview(principal, Action.PULL, target)
        return Verdict(
            user=principal.user,
            groups=sorted(principal.groups),
            address=principal.address,
            allowed=decision.is_allowed,
            rule=decision.rule,
            text=decision.text,
            because=decision.because,
            login_helps=decision.login_helps,
        )


def _policy(applied: Applied) -> Policy:
    return Policy(
        name=applied.name,
        demands=list(applied.demands),
        audit=applied.is_trial,
        denied=applied.is_denied,
        reason=applied.reason,
    )
