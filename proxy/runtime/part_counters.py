"""Counters of parts other than the cache itself, declared as in ``metrics``."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from proxy.runtime.declarations import counter, counter_by, gauge

LIMITS: Final = ("requests", "bytes", "downloads")
"""The limits for each client, as in ``access.limits``."""


@dataclass(slots=True)
class TaskCounters:
    """One background task, by the label ``task``; a task that has ended counts as running."""

    failures: int = counter("Failures of a background task.", name="background_failures")
    is_running: bool = gauge(
        "0 while a background task waits for its restart after a failure, else 1.",
        default=True,
        name="background_up",
    )


@dataclass(slots=True)
class WorkerCounters:
    """Totals of one worker process, by the label ``worker``; also part of the other totals."""

    requests: int = counter("Requests that a worker answered itself.", name="worker_requests")
    bytes: int = counter("Body bytes that a worker sent itself.", name="worker_client_bytes")
    relayed: int = counter(
        "Requests that a worker relayed to the main process.", name="worker_relayed"
    )
    cpu_seconds: float = counter("CPU time of a worker.", name="worker_cpu_seconds")
    memory: int = gauge(
        "Resident memory that a worker shares with no other process.",
        default=0,
        name="worker_memory_bytes",
    )


@dataclass(slots=True)
class LimitCounters:
    """One of the limits for clients, by the label ``limit``."""

    delayed: int = counter("Waits of clients because of a limit.", name="limit_delays")
    refused: int = counter("Requests refused because of a limit.", name="limit_refusals")
    seconds: float = counter("Seconds that clients have waited.", name="limit_wait_seconds")


@dataclass(slots=True)
class PolicyCounters:
    """Totals of one policy, by the label ``policy``."""

    decisions: Counter[str] = counter_by(
        "outcome",
        "Requests that a policy covers, by outcome, without those from the response cache.",
        ("allowed", "denied", "audited", "failed"),
        name="policy_decisions",
    )


@dataclass(slots=True)
class HookCounters:
    """Totals of one sender of webhooks, by the label ``hook``."""

    deliveries: Counter[str] = counter_by(
        "outcome",
        "Webhooks by outcome: accepted, without a tag that matters here, repeated, refused because "
        "of their proof, not understood, or one too many.",
        ("accepted", "ignored", "repeated", "refused", "invalid", "limited"),
        name="hook_deliveries",
    )


@dataclass(slots=True)
class NotificationCounters:
    """One receiver of events, by the label ``receiver``."""

    delivered: int = counter("Events that a receiver has accepted.", name="notifications_delivered")
    failures: int = counter("Failed attempts to deliver an event.", name="notification_failures")
    dropped: Counter[str] = counter_by(
        "reason",
        "Events that a receiver does not get: its queue is full, it refuses them, they are too "
        "old, more happened than could be kept, it wants none any more, or the disk has failed.",
        ("full", "refused", "expired", "overload", "disabled", "storage"),
        name="notifications_dropped",
    )
    queued: int = gauge("Events that wait for a receiver.", default=0, name="notifications_queued")
    is_disabled: bool = gauge(
        "1 if a receiver has answered 410, until the next reload.",
        default=False,
        name="notifications_disabled",
    )


@dataclass(slots=True)
class FleetCounters:
    """Totals of the fleet's Redis and replicas."""

    redis_commands: Counter[str] = counter_by(
        "command", "Commands sent to Redis.", ("get", "set"), name="fleet_redis_commands"
    )
    redis_failures: int = counter("Commands that Redis failed.", name="fleet_redis_failures")
    redis_skipped: int = counter(
        "Commands that were not sent because Redis is away.", name="fleet_redis_skipped"
    )
    redis_seconds: float = counter(
        "Seconds spent waiting for Redis.", name="fleet_redis_wait_seconds"
    )
    peer_bytes: int = counter("Body bytes received from replicas.", name="fleet_received_bytes")
    peer_bytes_sent: int = counter("Body bytes sent to replicas.", name="fleet_sent_bytes")
    peer_failures: int = counter("Requests to replicas that failed.", name="fleet_peer_failures")


@dataclass(slots=True)
class ProcessGauges:
    """The state of the process."""

    loop_lag: float = gauge(
        "Longest delay of the event loop in the last 15 seconds.",
        default=0.0,
        name="loop_lag_seconds",
    )
