"""The cases: modules with `run(bench: Bench) -> list[Row]`, in the order in which they run.

A new case is a new module and its name here.
"""

NAMES = (
    "warm_manifests",
    "warm_small_blobs",
    "warm_big_blob",
    "warm_image",
    "warm_tls",
    "cold_loopback",
    "cold_shaped_link",
    "cold_crowd",
    "cold_slow_connections",
    "cold_small_layers",
    "load_memory",
    "load_stalls",
    "load_idle",
    "second_core",
)
