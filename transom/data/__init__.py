"""Text to batches: sources, the check before anything is spent, tokenizers, token files, and the order of
training.

Running text flows one way: `sources` streams documents, `check` counts what is in them, `tokenizer` turns
them into ids, `tokens` keeps those in a memory-mapped file, `order` says which windows make which step;
`prepare` runs the first four once and remembers. Examples flow beside it: `pairs` and `labelled` read them,
`prepare_examples` splits and encodes them, `examples` makes the batches. This room knows no model. Read next:
prepare, prepare_examples.
"""
