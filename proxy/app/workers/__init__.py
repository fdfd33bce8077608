"""Several processes: workers answer hits, and the main process everything else.

In the main process ``crew`` starts and restarts the workers, ``inside`` answers what they relay,
and ``ledger`` takes what they report. In a worker ``process`` wires the rest: ``decisions`` says
what a worker may decide by itself, ``held`` finds content, ``answers`` sends hits, ``relay`` asks
the main process, and ``reports`` collects uses, counts and log lines. ``channel`` is between them.
"""
