"""Chat: what was said, what of it still fits, and what is remembered from one conversation to the next.

The terminal and the page of the server share these. Read next: conversation, memory, terminal.
"""
