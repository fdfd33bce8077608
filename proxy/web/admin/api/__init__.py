"""The Admin API under ``/-/api/v1/``: JSON documents and server-sent events.

``routes`` defines routes; ``application`` authorizes and answers requests; ``openapi`` describes
them. Each other module has one group of routes with its models. To add a group, add a module like
these, and one line in ``app.api``.
"""
