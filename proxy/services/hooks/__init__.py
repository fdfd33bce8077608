"""Webhooks of registries: which tags they name, and how a sender proves that it knows the secret.

Pure functions; ``web.admin.hooks`` reads requests, ``services.renewal`` acts on the tags.
"""
