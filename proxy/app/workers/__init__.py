"""Several processes: workers answer hits, and the main process does everything else.

In the main process ``crew`` starts and restarts the workers, ``inside`` answers relayed requests,
and ``ledger`` adds their reports to its own counts. In a worker ``process`` connects the rest:
``decisions`` makes the decisions that need no other process, ``held`` finds content, ``answers``
sends hits, ``relay`` forwards requests to the main process, and ``reports`` collects uses, counts
and log lines. ``channel`` connects a worker with the main process.
"""
