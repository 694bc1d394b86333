"""Text to batches: sources, the check before anything is spent, tokenizers, token files, and the order of
training.

Running text flows one way: `sources` streams documents, `check` counts what is in them, `tokenizer` turns
them into ids, `tokens` keeps those in a memory-mapped file, `order` says which windows make which step;
`prepare` runs the first four once and remembers. Examples go the same way: `pairs` and `labelled` stream
them, `example_survey` counts and splits, `prepare_examples` keeps their ids in the same kind of file, and
`examples` says which make which step. Neither is ever held in memory. This room knows no model. Read next:
prepare, prepare_examples.
"""
