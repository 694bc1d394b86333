"""API keys: where they come from, and the comparison that tells nothing by its time.

Only SHA-256 digests are kept. Keys come from the environment or a file, never from the command line, which
every process on a machine can read. Read next: guard.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from transom.data.lines import split_lines
from transom.errors import Refused
from transom.server_settings import ServerSettings

VARIABLE = "TRANSOM_API_KEY"
SHORTEST = 16
TENANT = 16
"""Digits of the digest that name a tenant."""
NONE: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Keys:
    """The keys that open this server; none at all means that it is open to whoever can reach it."""

    def __init__(self, keys: tuple[str, ...] = (), labels: Mapping[str, tuple[str, ...]] = NONE) -> None:
        """labels: of those keys that have some (--api-key-file)."""
        self._digests = tuple(map(_digest, keys))
        self.labels = {_digest(key).hex()[:TENANT]: own for key, own in labels.items()}
        """What each tenant may see of documents with labels."""

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, given: bytes | None) -> str | None:
        """Return a name for whoever holds this key, the same every time; None: the key is not one of ours."""
        if not self._digests:
            return ""
        found, digest = None, hashlib.sha256(given or b"").digest()
        for own in self._digests:  # all of them, so that the time says nothing about which
            if hmac.compare_digest(own, digest) and given is not None:
                found = own.hex()[:TENANT]
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def read_keys(settings: ServerSettings, environment: Mapping[str, str] = os.environ) -> tuple[Keys, str]:
    """The keys of these settings, and one that was made just now ('' when none was). Raises Refused for a
    key that is too short, for a file that cannot be read, and for a public server without a key."""
    keys = [key for key in [environment.get(VARIABLE, "")] if key]
    labels: dict[str, tuple[str, ...]] = {}
    if settings.api_key_file is not None:
        labels = _from_file(settings.api_key_file)
        keys += labels
    made = f"sk-transom-{secrets.token_urlsafe(24)}" if settings.generate_key else ""
    keys += [made] * bool(made)
    for key in keys:
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise Refused(
                f"an API key has {len(key)} characters or odd ones; give at least {SHORTEST} printable"
                " ASCII ones, or let --generate-key make one"
            )
    if not (keys or settings.loopback or settings.i_know_this_is_public):
        raise Refused(
            f"--host {settings.host} lets other machines in, and no key is set; add --generate-key, set"
            f" {VARIABLE}, name an --api-key-file, or say --i-know-this-is-public"
        )
    return Keys(tuple(keys), labels), made


def _from_file(file: Path) -> dict[str, tuple[str, ...]]:
    """The keys of a file, each with its labels."""
    try:
        lines = split_lines(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Refused(f"--api-key-file {file}: {why.lower()}") from None
    said = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if odd := [number for number, words in enumerate(said, 1) if len(words) > 2]:
        raise Refused(
            f"--api-key-file {file}: key {odd[0]} has more behind it than its labels; write KEY label,label"
        )
    keys = {words[0]: tuple(label for label in "".join(words[1:]).split(",") if label) for words in said}
    if not keys:
        raise Refused(f"--api-key-file {file}: there is no key in it; write one per line")
    return keys
