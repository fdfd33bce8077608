"""HTTP towards clients: ``registry`` answers ``/v2/``, ``admin`` everything of our own.

``server`` makes the ``connection``s, and ``prepared`` has the answers that are given at once.
``send`` moves bytes to sockets, ``warm`` from the disk before that, ``ranges`` reads ``Range``,
``certificate`` keeps HTTPS current, ``lag`` watches the loop.
"""
