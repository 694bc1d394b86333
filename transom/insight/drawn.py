"""What makes a view show itself: as a picture in a notebook, and saved as one HTML file.

The numbers of a view know nothing of pictures; this is the one line between them. Read next: overview.
"""

from __future__ import annotations

from typing import Any

from .html import Picture


class Drawn:
    """Base of what can be drawn by itself."""

    def picture(self, tokenizer: Any = None) -> Picture:
        """Its picture; without a tokenizer tokens are shown by their numbers. Raises `Refused`."""
        from .overview import picture_of  # which knows every view, so it cannot be known by them

        return picture_of(self, tokenizer)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.picture()._repr_mimebundle_()
