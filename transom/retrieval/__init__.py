"""Documents: read, cut into chunks, kept in a store, searched, and answered from with citations.

Read next: indexing, search, ask.
"""
