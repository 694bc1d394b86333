"""The CPU kernels: C++ behind a C ABI, optional. Everything works without them, by PyTorch.

`library` finds and loads them, `plan` says a model in their words, `src/transom.h` is what they offer, and
`docs/native.md` how they are made. Knows no other room; models are looked at by their config and the names of
their parts. Read next: plan, library.
"""
