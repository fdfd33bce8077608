"""Several processes: workers answer hits, and the main process does everything else.

In the main process ``pool`` starts and restarts the workers, ``internal`` answers relayed requests,
and ``report_receiver`` adds their reports to its own counts. In a worker ``process`` connects the
rest: ``decisions`` makes the decisions that need no other process, ``cached_content`` finds
content, ``hit_handler`` sends hits, ``relay`` forwards requests to the main process, and
``reports`` collects uses, counts and log lines.
``channel`` connects a worker with the main process.
"""
