"""Running a model: texts in; texts, classes or vectors out.

Read in this order: load, then generator (the whole path of a call), sampling, stop, request, runner; then
translator, beam, and batching, embedder, classifier, fill_mask.
"""
