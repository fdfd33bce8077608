"""Pins that were added while running: what one replica pins or unpins, all do.

Redis has a hash of names: ``1`` is pinned, ``0`` no longer. A pin that returns because Redis has
lost that keeps more than it must, which does no harm.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from proxy.core.tolerant_json import read_object

_PINNED: Final = b"1"
_UNPINNED: Final = b"0"


class LocalPins(Protocol):
    """The pins of this replica."""

    @property
    def on_change(self) -> list[Callable[[str, bool], None]]:
        """Called with the name of a pin that changed here, and whether it is pinned."""

    def added(self) -> list[str]:
        """Return the names of the pins that were added while running."""

    async def follow(self, changes: Mapping[str, bool]) -> None:
        """Pin and unpin as other replicas did. Raises ``StorageError``."""


class PinRows:
    """The pins as rows."""

    channel: Final = "pins"
    absent: Final = _UNPINNED

    def __init__(self, pins: LocalPins) -> None:
        self._pins = pins

    def listen(self, changed: Callable[[str], None]) -> None:
        """Call ``changed`` with the name of each pin that changes here."""
        self._pins.on_change.append(lambda name, _: changed(name))

    def rows(self) -> Mapping[str, bytes]:
        """Return the pins."""
        return dict.fromkeys(self._pins.added(), _PINNED)

    def message(self, name: str, value: bytes) -> bytes:
        """Return a name with whether it is pinned."""
        return json.dumps({name: value == _PINNED}).encode()

    def names_in(self, message: bytes) -> Iterable[str]:
        """Return the names in a message."""
        return [name for name, pinned in read_object(message).items() if isinstance(pinned, bool)]

    def has_ended(self, value: bytes) -> bool:
        """Return False: that a pin was removed is remembered."""
        return False

    async def follow(self, rows: Mapping[str, bytes]) -> None:
        """Pin and unpin as other replicas did. Raises ``StorageError``."""
        await self._pins.follow({name: value == _PINNED for name, value in rows.items()})
