"""One registry to pull from: what we fetch, how it wants to be asked, and who we are.

``registry`` fetches, ``transport`` speaks HTTP, ``auth`` answers challenges, ``providers`` hold
credentials. Library errors end here, as classes of ``proxy.core.errors``.
"""
