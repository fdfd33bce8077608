"""Who a client is, and what it may do: asked on every path before content or state is shown.

``control`` is the door; ``principals`` and ``identity`` say who, ``rules`` what. A decision is a
pure function that never waits, so the response cache can ask for each request. Knows no HTTP but
the value of ``Authorization``.
"""
