"""The dashboard at ``/-/``: a page for people that shows what the admin API answers."""
