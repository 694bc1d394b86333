"""Models: tensors in, tensors out. Imports torch and nothing of ours, and can be read and tested alone.

Start at `transformer`; `config` says what can be built.
"""
