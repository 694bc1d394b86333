"""Weights and folders: committed writes, and Hugging Face folders in and out.

`folder` makes every save whole or absent, `tensors` guards the files of weights, `families` says how each
family spells a model, `huggingface` loads and saves one. Read first: folder, then huggingface.
"""
