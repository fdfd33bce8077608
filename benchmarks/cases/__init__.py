"""The cases: modules with `run(bench: Bench) -> list[Row]`.

A new case is a new module here and its name in the list.
"""

from typing import Final

CASES: Final[dict[str, tuple[str, ...]]] = {
    "warm_manifests": ("wrk",),
    "warm_access": ("wrk",),
    "warm_fleet": ("wrk", "redis-server"),
    "warm_small_blobs": ("wrk",),
    "warm_big_blob": (),
    "warm_image": ("skopeo",),
    "warm_tls": ("nginx",),
    "cold_loopback": (),
    "cold_shaped_link": ("ip", "tc"),
    "cold_crowd": ("ip", "tc"),
    "cold_slow_connections": (),
    "cold_small_layers": (),
    "load_memory": (),
    "load_stalls": ("wrk",),
    "load_idle": (),
    "load_dashboards": (),
    "second_core": ("wrk",),
    "workers": ("wrk",),
    "scale": ("wrk",),
    "bundles": (),
}
"""In the order in which they run, with the programs that they cannot do without."""
