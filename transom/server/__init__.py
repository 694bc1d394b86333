"""Serving: an API that other tools already speak, and the page, safe by construction.

A request passes `protocol` (deadlines), `guard` (who, from where, how large), `schema` (what is asked),
`completions` and its like (what is answered) and `worker` (the engine's thread). Read next: app.
"""
