"""Which examples are held out: by the hash of their text, equal texts together.

The one idea: examples that share a text form a group (pairs: that share either side, directly or through
others), groups are taken in the order of their hash, and so the choice depends on the texts alone and nothing
held out was learned from. Read next: prepare_examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transom.data.split import check_fraction, chosen_groups

Groups = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def same(texts: Sequence[str]) -> Groups:
    """For every text its hash."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def linked(one: Sequence[str], other: Sequence[str]) -> Groups:
    """For every pair the smallest hash among all pairs that it is linked to by a text on the same side."""
    parent = list(range(len(one)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for texts in (one, other):
        first: dict[str, int] = {}
        for at, text in enumerate(texts):
            parent[root(at)] = root(first.setdefault(text, at))
    roots = np.array([root(at) for at in range(len(one))], dtype=np.int64)
    smallest = np.full(len(one), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, roots, same(one))
    return smallest[roots]


def held_out_groups(groups: Groups, fraction: float) -> Mask:
    """About `fraction` of the examples in whole groups, in the order of their hash."""
    check_fraction(fraction)
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)
    return chosen_groups(sizes, fraction * len(groups))[member]


def held_out_of_each(labels: Sequence[str], groups: Groups, fraction: float) -> Mask:
    """About `fraction` of every class in whole groups, never all of a class.

    A group is of the class that its first example has.
    """
    check_fraction(fraction)
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    classes = np.unique(np.asarray(labels), return_inverse=True)[1][first]
    chosen = np.zeros(len(first), dtype=np.bool_)
    for number in np.unique(classes):
        of_class = np.flatnonzero(classes == number)
        chosen[of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    if not chosen.any():  # so few of each that every share is nothing: one of the largest class
        largest = np.flatnonzero(classes == np.bincount(classes).argmax())
        chosen[largest[: int(len(largest) > 1)]] = True
    return chosen[member]
