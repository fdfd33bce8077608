"""HTTP towards clients: ``registry`` answers ``/v2/``, ``admin`` answers ``/-/`` and ``/metrics``.

``acceptor`` and ``server`` make a ``connection``, whose requests ``response_cache`` answers if it
can. ``blob``, ``sendfile`` and ``paced`` move bytes to sockets.
"""
