"""Decides whether a policy objects to an image: a pure function of the rule and the facts.

``Rule`` is a policy of the settings with its patterns compiled and its files read.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.core.errors import ConfigError, DigestInvalid, RegistryError
from proxy.core.names import Digest, Target, parse_digest
from proxy.core.selection import Selector, allowing
from proxy.core.units import show_size
from proxy.runtime.watched_file import WatchedFile
from proxy.settings.policies import Policy

if TYPE_CHECKING:
    from proxy.policies.keys import PublicKey

ATTACHMENT_TAG: Final = re.compile(r"sha(256|512)-[a-f0-9]{64,128}(\.(sig|att|sbom))?")
"""Tags of signatures, attestations, SBOMs (cosign), and of lists of referrers."""

UNSIGNED: Final = "it has no valid signature"
UNREADABLE: Final = "its manifest is not understood"
_VARIANTS: Final = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The known facts about an image.

    ``listed`` are its digests with those that it lists, ``parents`` the held indexes of the
    repository that list it. ``size`` is in bytes. ``platform`` is None if it has none. Without
    ``is_understood`` its manifest could not be read. ``is_attachment``: it is a signature or
    another attachment of an image, and clients cannot run it.
    """

    listed: frozenset[Digest]
    parents: frozenset[Digest] = frozenset()
    size: int = 0
    platform: str | None = None
    types: tuple[str, ...] = ()
    is_understood: bool = True
    is_attachment: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One policy."""

    name: str
    policy: Policy
    images: tuple[Selector, ...]
    excluded: tuple[Selector, ...]
    digest_file: "WatchedFile[frozenset[Digest]] | None"
    key_files: "tuple[WatchedFile[PublicKey], ...]"

    @property
    def denied_digests(self) -> frozenset[Digest]:
        """The digests in ``deny_digests_file``."""
        return frozenset() if self.digest_file is None else self.digest_file.value

    @property
    def keys(self) -> "tuple[PublicKey, ...]":
        """The keys of which one must have signed an image; empty if no signature is required."""
        return tuple(file.value for file in self.key_files)

    @property
    def needs_manifest(self) -> bool:
        """The rule needs facts from the manifest besides the digest."""
        policy = self.policy
        return bool(
            policy.max_image_size or policy.platforms or policy.media_types or self.digest_file
        )

    @property
    def demands(self) -> tuple[str, ...]:
        """The conditions of the policy, each with the name of its setting."""
        policy = self.policy
        demands = {
            "deny": "these images are denied" if policy.deny else "",
            "deny_digests_file": str(policy.deny_digests_file or ""),
            "max_image_size": show_size(policy.max_image_size) if policy.max_image_size else "",
            "platforms": ", ".join(policy.platforms),
            "media_types": ", ".join(policy.media_types),
            "require": f"a signature by one of {len(self.key_files)} keys" * bool(self.key_files),
        }
        return tuple(f"{name}: {text}" for name, text in demands.items() if text)

    def covers(self, target: Target) -> bool:
        """Return True if the policy is about a repository."""
        return any(one.covers(target) for one in self.images) and not any(
            one.covers(target) for one in self.excluded
        )

    def refresh(self) -> bool:
        """Read changed files; return True if their content differs. Blocks."""
        changes = [file.refresh() for file in self.key_files]
        if self.digest_file is not None:
            changes.append(self.digest_file.refresh())
        return any(changes)

    def sentence(self, reason: str) -> str:
        """Return the message for clients."""
        because = f"; {self.policy.because}" if self.policy.because else ""
        return f"denied by policy {self.name!r}: {reason}{because}"


def compile_rules(
    policies: Sequence[Policy], selector: Callable[[str], Selector]
) -> tuple[Rule, ...]:
    """Return the rules of the settings, their files read. Raises ``ConfigError``.

    ``selector`` parses a pattern; it raises ``RegistryError``.
    """
    rules = []
    for number, policy in enumerate(policies, 1):
        try:
            rules.append(_compiled(policy, policy.name or str(number), selector))
        except (ConfigError, RegistryError) as error:
            raise ConfigError(f"policies.{number - 1}: {error}") from None
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"policies: two policies have the name {name!r}")
    return tuple(rules)


def objection(rule: Rule, facts: ImageFacts) -> str | None:
    """Return why a policy denies an image, None if it does not. Does not check signatures."""
    denied = rule.denied_digests
    if rule.policy.deny:
        return "its repository is denied"
    if found := sorted(facts.listed & denied):
        return f"{found[0]} is denied"
    if facts.parents and facts.parents <= denied:
        return f"it is part of {min(facts.parents)}, which is denied"
    return _objection_to_content(rule.policy, facts)


def _objection_to_content(policy: Policy, facts: ImageFacts) -> str | None:
    """Return why a policy denies the content of a manifest."""
    is_examined = policy.max_image_size or policy.platforms or policy.media_types
    if is_examined and not facts.is_understood:
        return UNREADABLE
    if policy.max_image_size is not None and facts.size > policy.max_image_size:
        return (
            f"its size of {show_size(facts.size)} is above the limit of "
            f"{show_size(policy.max_image_size)}"
        )
    if facts.is_attachment:
        return None
    platform = facts.platform
    if policy.platforms and platform is not None and not _is_allowed(platform, policy.platforms):
        return f"its platform {platform} is not allowed" if platform else "its platform is unknown"
    if policy.media_types and (refused := set(facts.types) - set(policy.media_types)):
        return f"its media type {min(refused)} is not allowed"
    return None


def _is_allowed(platform: str, allowed: Iterable[str]) -> bool:
    """Return True if an allowed platform is this one; one without a variant allows all variants."""
    return any(
        _normal(platform) == _normal(one)
        or (one.count("/") == 1 and platform.startswith(f"{one}/"))
        for one in allowed
    )


def _normal(platform: str) -> str:
    """Return a platform with the variant that its absence means (containerd ``platforms``)."""
    system, _, machine = platform.partition("/")
    variant = _VARIANTS.get(machine)
    return f"{system}/{machine}/{variant}" if variant else platform


def _compiled(policy: Policy, name: str, selector: Callable[[str], Selector]) -> Rule:
    digests = policy.deny_digests_file
    files = () if policy.require is None else policy.require.cosign.keys
    return Rule(
        name,
        policy,
        images=tuple(map(selector, policy.images)),
        excluded=tuple(allowing(pattern, selector) for pattern in policy.except_),
        digest_file=None if digests is None else WatchedFile(digests, _read_digests),
        key_files=tuple(WatchedFile(file, _read_key) for file in files),
    )


def _read_key(pem: bytes) -> "PublicKey":
    """Return the key in a PEM file; ``cryptography`` is imported only where keys are required."""
    module = importlib.import_module("proxy.policies.keys")
    key: PublicKey = module.read_key(pem)
    return key


def _read_digests(text: bytes) -> frozenset[Digest]:
    """Return the digests in a file, one per line. Raises ``ValueError`` for any other line."""
    digests = set()
    for number, line in enumerate(text.decode().splitlines(), 1):
        if word := line.partition("#")[0].strip():
            try:
                digests.add(parse_digest(word))
            except DigestInvalid as error:
                raise ValueError(f"line {number}: {error.message}") from None
    return frozenset(digests)
