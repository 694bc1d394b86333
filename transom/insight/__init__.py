"""Looking at a model from outside: what ran, checked against what came out. Read next: look."""

from __future__ import annotations
