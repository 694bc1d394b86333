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


def digest_of(text: str) -> bytes:
    """The 8 bytes by which a text is known."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def linked(one: Groups, other: Groups) -> Groups:
    """For every pair of hashes (n,) the smallest `one` among all pairs linked to it by a text of one side."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(one)
    ends = [np.unique(side, return_inverse=True)[1].astype(np.int32) for side in (one, other)]
    shape = tuple(int(side.max(initial=-1)) + 1 for side in ends)
    graph = coo_array((np.ones(n, dtype=np.bool_), (ends[0], ends[1] + shape[0])), shape=(sum(shape),) * 2)
    member = connected_components(graph, directed=False)[1][ends[0]]
    smallest = np.full(int(member.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, member, one)
    return smallest[member]


def held_out_groups(groups: Groups, fraction: float) -> Mask:
    """About `fraction` of the examples in whole groups, in the order of their hash."""
    check_fraction(fraction)
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)
    return chosen_groups(sizes, fraction * len(groups))[member]


def held_out_of_each(labels: Sequence[str] | npt.NDArray[np.int64], groups: Groups, fraction: float) -> Mask:
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
