"""The Admin API under ``/-/api/v1/``: JSON documents and server-sent events.

``routes`` says what a route is; ``application`` answers requests by routes, and decides who may
send them; ``openapi`` describes them. Each other module has one group of routes with its models. A
new group is one more module like these, and one line in ``app.api``.
"""
