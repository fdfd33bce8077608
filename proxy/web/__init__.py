"""HTTP towards clients: ``registry`` answers ``/v2/``, ``admin`` answers ``/-/`` and ``/metrics``.

``acceptor`` and ``server`` create a ``connection``, whose requests ``response_cache`` answers if
possible. ``blob``, ``sendfile`` and ``pacing`` write bytes to sockets.
"""
