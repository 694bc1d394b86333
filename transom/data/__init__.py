"""Text to batches: sources, the check before anything is spent, tokenizers, token files, and the order of
training.

Text flows one way: `sources` streams documents, `check` counts what is in them, `tokenizer` turns them into
ids, `tokens` keeps those in a memory-mapped file, `order` says which windows make which step; `prepare` runs
the first four once and remembers. This room knows no model. Read next: prepare.
"""
