"""Whether an upstream may be contacted, by the settings or by the operator."""

from enum import StrEnum


class OfflineMode(StrEnum):
    """When requests to an upstream are refused."""

    NEVER = "false"
    ALWAYS = "true"
    AUTO = "auto"
    """While its circuit is open."""


class OfflineSwitch:
    """The mode of one upstream. ``live`` is the operator's, and overrides the configured one."""

    def __init__(self) -> None:
        self.configured = OfflineMode.NEVER
        self.live: OfflineMode | None = None

    @property
    def mode(self) -> OfflineMode:
        """The mode in force."""
        return self.configured if self.live is None else self.live

    @property
    def is_forced(self) -> bool:
        """Nothing may be sent: no name is looked up, and no socket is opened."""
        return self.mode is OfflineMode.ALWAYS
