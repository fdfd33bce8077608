"""Webhooks of registries: the tags that they name, and the authentication of their senders.

Pure functions; ``web.admin.hooks`` reads requests, ``services.renewal`` acts on the tags.
"""
