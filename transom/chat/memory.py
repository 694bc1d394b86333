"""Memory across conversations: facts that the user asked to keep, in one SQLite file.

The one idea: nothing is kept that nobody asked for, and everything kept can be seen, edited, forgotten and
switched off. Only facts that bear on a message go along with it (`Memory.relevant`), since a small model that
is told of a cat answers everything else worse. Words are found by FTS5 (a message's words are quoted, so none
of them is ever query syntax). What is forgotten is overwritten in the file, in its index too. One file is one
person's memory: whoever serves several opens several. Read next: conversation.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transom.data.documents import printable
from transom.errors import Refused

MAX_FACTS, MAX_CHARACTERS = 1000, 1000
IN_PROMPT = 3
"""Facts that go into one prompt, at most."""
QUERY_WORDS = 64
"""Words of a message that are looked for, at most."""
VERSION = 1
HEADING = "What you know about the user, in their words:"
"""Above the facts. Of 30 that were asked for, 10 kept at a time, SmolLM2-135M says 13 so (each went along), 8
where the newest six went along with everything in place of the template's own system text.
"""

_SCHEMA = (
    "CREATE TABLE facts"
    " (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE, created TEXT NOT NULL)",
    "CREATE TABLE switches (name TEXT PRIMARY KEY, is_on INTEGER NOT NULL)",
    "INSERT INTO switches VALUES ('enabled', 1)",
    "CREATE VIRTUAL TABLE facts_index USING fts5"
    " (text, content='facts', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2')",
    f"PRAGMA user_version = {VERSION}",
)
_ASKED = re.compile(
    r"(?:(?:please|also|and)[\s,]+)*remember\s*(?:that\b|this\s*:|:)[\s,:]*(?P<fact>.+)", re.I | re.S
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_ABOUT_THE_USER = re.compile(
    r"\b(?:my|mine|myself|ours?|i(?:['’]m| am)|(?:about|for) me"
    r"|(?:am|can|could|did|do|had|have|may|should|was|were) (?:i|we))\b",
    re.I,
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after again all also am an and any anything are as at be because been before being but by
        can could d did do does doing don each else for from give had has have having he help her here hers
        him his how i if in into is isn it its just know ll m may me might mine more most much must my
        myself no not now of off on one or our ours out over please re s shall she should show so some
        something such t tell than that the their them then there these they this those to too up us ve very
        was we were what when where which while who whom whose why will with would yes you your yours
        """,
    )
)


@dataclass(frozen=True)
class Fact:
    """One thing to remember."""

    id: int
    text: str
    created: str
    """When it was kept or last edited: UTC, ISO 8601, to the second."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Recall:
    """What a memory makes of a message."""

    facts: list[Fact]
    """What bears on it."""
    kept: Fact | None
    """What it asked to be kept."""
    not_kept: str
    """Why what it asked to be kept was not, in one line; empty where nothing went wrong."""


def default_path() -> Path:
    """Where a person's memory lies unless they say otherwise."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "transom" / "memory.sqlite"


def asked_to_keep(said: str) -> str | None:
    """The fact in `remember that FACT` or `please remember: FACT`, or None; a question asks nothing of us."""
    found = _ASKED.match(said.strip())
    return None if found is None or said.rstrip().endswith("?") else found["fact"].strip()


class Memory:
    """The facts of one person; may be used from several threads, and by several processes."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        """Open the file, or make it, readable by its owner only; Refused where it is no memory of ours."""
        self.path, self._lock = path, threading.RLock()
        with self._transaction(connect=True) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
            elif version != VERSION:
                raise Refused(
                    f"{printable(path)}: not a memory, or one of another version ({version}, this one reads"
                    f" {VERSION}); name another file for the memory",
                    code="memory_file",
                )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # What is kept

    def remember(self, text: str) -> Fact:
        """Keep a fact; one that is there already stays as it is. Refused when memory is off or full."""
        text = _clean(text)
        with self._transaction() as db:
            if not self.enabled:
                raise Refused("memory is switched off, so nothing is kept; switch it on first")
            known = db.execute("SELECT id, text, created FROM facts WHERE text = ?", (text,)).fetchone()
            if known:
                return Fact(*known)
            if self.count() >= MAX_FACTS:
                raise Refused(f"memory holds {MAX_FACTS} facts, which is its limit; forget some first")
            row = db.execute("INSERT INTO facts(text, created) VALUES (?, ?)", (text, _now())).lastrowid
            _reindex(db)
            return self._fact(row)

    def facts(self) -> list[Fact]:
        """Everything that is kept, oldest first."""
        with self._transaction() as db:
            return [Fact(*row) for row in db.execute("SELECT id, text, created FROM facts ORDER BY id")]

    def count(self) -> int:
        """How many facts there are, switched on or not."""
        with self._transaction() as db:
            return db.execute("SELECT count(*) FROM facts").fetchone()[0]

    def edit(self, id: int, text: str) -> Fact:
        """Say a fact in other words. Refused where there is no such fact, or another says the same."""
        text = _clean(text)
        with self._transaction() as db:
            self._fact(id)
            same = db.execute("SELECT id FROM facts WHERE text = ? AND id != ?", (text, id)).fetchone()
            if same:
                raise Refused(f"fact {same[0]} says the same already; forget one of the two")
            db.execute("UPDATE facts SET text = ?, created = ? WHERE id = ?", (text, _now(), id))
            _reindex(db)
            return self._fact(id)

    def forget(self, id: int) -> None:
        """Forget one fact for good. Refused where there is no such fact."""
        with self._transaction() as db:
            self._fact(id)
            db.execute("DELETE FROM facts WHERE id = ?", (id,))
            _reindex(db)

    def forget_all(self) -> int:
        """Forget everything for good; how many facts there were."""
        with self._transaction() as db:
            count = db.execute("DELETE FROM facts").rowcount
            _reindex(db)
            return count

    @property
    def enabled(self) -> bool:
        """Whether facts are kept and used; what is there stays there while it is off."""
        with self._transaction() as db:
            return bool(db.execute("SELECT is_on FROM switches WHERE name = 'enabled'").fetchone()[0])

    @enabled.setter
    def enabled(self, on: bool) -> None:
        with self._transaction() as db:
            db.execute("UPDATE switches SET is_on = ? WHERE name = 'enabled'", (int(on),))

    # What a conversation asks of it

    def hear(self, said: str, k: int = IN_PROMPT) -> Recall:
        """Keep what a message asks to be kept, and find what bears on it; no message is refused."""
        fact = asked_to_keep(said) if self.enabled else None
        try:
            kept, not_kept = (self.remember(fact) if fact else None), ""
        except Refused as refused:
            kept, not_kept = None, str(refused)
        return Recall(self.relevant(said, k), kept, not_kept)

    def relevant(self, said: str, k: int = IN_PROMPT) -> list[Fact]:
        """The facts that bear on a message, without those it states itself, at most k; none while off.

        Those that share the most of its words, the function words of English aside. Where it speaks of the
        user ("my", "do I") one word is enough, and where it then names nothing ("who am I?") the newest facts
        are meant; of any other message ("name three fruits") a fact must hold more than half of the words.
        """
        if not self.enabled:
            return []
        words = list(dict.fromkeys(re.findall(r"[^\W_]+", _encodable(said).casefold())))
        words = [word for word in words if word not in _FUNCTION_WORDS][:QUERY_WORDS]
        of_the_user = bool(_ABOUT_THE_USER.search(said))
        with self._transaction() as db:
            if of_the_user and not words:
                return self.facts()[: -k - 1 : -1]
            stated = " ".join(said.split()).casefold()
            shared: Counter[int] = Counter()
            for word in words:
                found = db.execute("SELECT rowid FROM facts_index WHERE facts_index MATCH ?", (f'"{word}"',))
                shared.update(id for (id,) in found)
            most = max(shared.values(), default=0)
            if most < (1 if of_the_user else len(words) // 2 + 1):
                return []
            best = [self._fact(id) for id in sorted(shared, reverse=True) if shared[id] == most]
            return [fact for fact in best if fact.text.casefold() not in stated][:k]

    # Inside

    def _fact(self, id: int | None) -> Fact:
        query = "SELECT id, text, created FROM facts WHERE id = ?"
        row = self._db.execute(query, (id,)).fetchone() if 0 < (id or 0) < 1 << 63 else None
        if row is None:
            raise Refused(f"memory has no fact {id}; list the facts to see their numbers")
        return Fact(*row)

    @contextmanager
    def _transaction(self, connect: bool = False) -> Iterator[sqlite3.Connection]:
        """The database, for one thread and process at a time; everything inside is kept, or nothing."""
        with self._lock:
            try:
                if connect:
                    self._db = _open(self.path)
                if self._db.in_transaction:  # inside another one, which will commit
                    yield self._db
                    return
                with self._db:  # commits, or takes everything back
                    self._db.execute("BEGIN IMMEDIATE")  # so another process cannot step in between
                    yield self._db
            except (sqlite3.Error, OSError) as error:
                raise Refused(
                    f"{printable(self.path)}: the memory cannot be used ({printable(str(error))});"
                    " name another file for it, or move this one away",
                    code="memory_file",
                ) from None


def used_here(memory: Memory) -> str:
    """What to say of a memory when a conversation begins; empty where it has nothing to add."""
    n = memory.count() if memory.enabled else 0
    if n == 1:
        return "1 fact from earlier conversations is used where it bears on a message"
    return f"{n:,} facts from earlier conversations are used where they bear on a message" if n else ""


def note(facts: list[Fact]) -> str:
    """Facts as they stand beside the system text; empty for none."""
    return "\n".join([HEADING, *(f"- {fact.text}" for fact in facts)]) if facts else ""


def _open(path: str | Path) -> sqlite3.Connection:
    if str(path) != ":memory:":
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten with zeros
    return db


def _reindex(db: sqlite3.Connection) -> None:
    """Write the index anew: an update in place would keep the words of forgotten facts in it."""
    db.execute("INSERT INTO facts_index(facts_index) VALUES ('rebuild')")


def _clean(text: str) -> str:
    """A fact as one line. Refused where it is empty or too long."""
    text = " ".join(_CONTROL.sub(" ", _encodable(text)).split())
    if not text:
        raise Refused("there is nothing to remember; say what, as in: remember that my dog is called Rex")
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"a fact has at most {MAX_CHARACTERS} characters, this one has {len(text)}; shorten it")
    return text


def _encodable(text: str) -> str:
    """Text without lone surrogates, which JSON may bring and SQLite cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
