"""The lab: small experiments that can be followed with a pencil, and fair comparisons of whole models.

Read in this order: network (a net and its gradient by hand), chain_rule (that gradient for one weight, path
by path), backprop (the story told of it), gradient_picture; then compare.
"""

CLAIMS = {
    "gradient": "Claim 1: recurrences lose the gradient with distance, Transformers do not.",
    "parallel": "Claim 2: recurrences learn slowly because they are sequential.",
    "recall": "Claim 3: Transformers recall over long distances, recurrences do not.",
    "scale": "Claim 4: without the root of d_k softmax saturates and gradients vanish.",
    "order": "Claim 5: without position encodings a Transformer cannot know the order of tokens.",
    "power-law": "Claim 6: loss falls as a power law, so that a larger model's can be foretold.",
    "transfer": "Claim 7: fine-tuning needs far less than training from scratch.",
    "experts": "Claim 8: experts give the quality of a larger model for less compute per token.",
    "retrieval": "Claim 9: documents to read keep a model from making things up.",
    "bias": "Claim 10: a skew in the data shows in the model, and can be measured.",
    "state": "Claim 11: what a recurrence does, attention does too.",
    "longer": "Claim 12: rotary and relative positions carry a model beyond its length.",
}
"""What is put to the test, by its verb, which is its module too; nothing heavy is imported for it."""
