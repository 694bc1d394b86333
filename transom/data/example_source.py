"""Where examples come from: a stream of pairs or of labelled texts that can be read again and again.

The one idea: as with text (sources), a source is a name, a way to read it from the start, and a fingerprint;
what is met on the way is noted in Issues, and more than 1% left out is an error. Read next: pairs,
labelled.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from transom.data.issues import Issues, Policy
from transom.data.textfile import SkippedFile

Example = TypeVar("Example")


@dataclass(frozen=True)
class ExampleSource(Generic[Example]):
    """Examples to learn from, in a fixed order, with the place of each."""

    name: str
    read: Callable[[Issues], Iterator[Example]]
    """Reads all of it once."""
    paths: tuple[Path, ...] = ()
    settings: tuple[object, ...] = ()
    """What else decides which examples come."""
    on_error: Policy = "error"
    tokenizer: str = "bpe"
    """The kind of vocabulary that suits these texts."""
    held_out: ExampleSource[Example] | None = None
    """What is to be measured on, where the source brings it along."""
    notes: tuple[str, ...] = ()
    """Sentences about choices that were made for the reader."""

    def __iter__(self) -> Iterator[Example]:
        return self.examples()

    def examples(self, issues: Issues | None = None) -> Iterator[Example]:
        """Stream the examples; raises Refused, with the place, as `on_error` asks."""
        issues = issues if issues is not None else Issues()
        issues.policy = self.on_error
        with contextlib.suppress(SkippedFile):
            yield from self.read(issues)
        issues.refuse_if_much_was_skipped()

    def fingerprint(self) -> str:
        """A hash that changes when a file is resized or written to, or a setting differs; reads no text."""
        digest = hashlib.sha256(repr((self.name, self.on_error, self.settings)).encode())
        for path in self.paths:
            state = path.stat()
            facts = (str(path.absolute()), state.st_size, state.st_mtime_ns)
            digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
