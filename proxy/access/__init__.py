"""Who a client is, and what it may do: checked for every request, before any lookup.

``control`` is the interface; ``principals`` and ``identity`` identify clients, ``rules`` decide. A
decision is a pure function that never waits, so the response cache can check each request. The
only part of HTTP that this package uses is the value of ``Authorization``.
"""
