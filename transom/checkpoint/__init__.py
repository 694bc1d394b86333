"""Weights and folders: committed writes, Hugging Face and sentence-transformers folders in and out.

`folder` makes every save whole or absent, `tensors` guards the files of weights, `families` lists the tables
that say how each family spells a model, `weight_mapping` finds which tensor is which weight, `huggingface`
loads and saves one. Read first: folder, then huggingface.
"""
