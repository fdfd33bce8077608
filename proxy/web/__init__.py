"""HTTP towards clients: ``registry`` answers ``/v2/``, ``admin`` everything of our own.

``send`` moves bytes to sockets, ``ranges`` reads ``Range``, ``server`` holds the connections,
``certificate`` keeps HTTPS current.
"""
