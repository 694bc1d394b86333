"""The lab: small experiments that can be followed with a pencil, and fair comparisons of whole models.

Read in this order: network (a net and its gradient by hand), chain_rule (that gradient for one weight, path
by path), backprop (the story told of it), gradient_picture; then compare.
"""
