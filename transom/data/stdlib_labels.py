"""A labelled set that is always at hand: what is this docstring about? The docstrings of Python's standard
library, each with the subject of the module it stands in.

Nine subjects, as uneven as the library is. The names of all modules are taken out of the texts, so that a
model has to go by what is said. The set differs between Python versions, as the library does. Which texts are
held out is decided by a hash of the text. Read next: labelled.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from functools import cache

from transom.data.samples import stdlib_files

STDLIB_LABELS = "stdlib-labels"

SUBJECTS = {
    "concurrency": "asyncio concurrent multiprocessing threading queue sched subprocess selectors "
    "_threading_local contextvars asyncore asynchat signal",
    "debugging": "unittest doctest pdb bdb logging trace profile cProfile pstats timeit warnings tracemalloc "
    "pydoc cmd faulthandler code codeop",
    "files": "pathlib os posixpath ntpath genericpath shutil tarfile zipfile gzip bz2 lzma tempfile _pyio io "
    "fileinput glob fnmatch shelve dbm filecmp stat _compression pickle zipapp",
    "graphics": "tkinter turtle",
    "internet": "http urllib socket ssl ftplib nntplib telnetlib xmlrpc wsgiref socketserver ipaddress cgi "
    "cgitb webbrowser uuid",
    "language": "importlib inspect typing ast dis symtable tokenize types enum dataclasses abc functools "
    "collections _collections_abc contextlib pkgutil runpy zipimport copy weakref _weakrefset traceback "
    "keyword operator modulefinder opcode linecache",
    "mail": "email mailbox mimetypes imaplib poplib smtplib smtpd quopri mailcap",
    "numbers": "decimal _pydecimal fractions numbers statistics random datetime _pydatetime calendar "
    "_strptime colorsys bisect heapq zoneinfo graphlib",
    "text": "xml html json csv re sre_parse sre_compile string textwrap difflib configparser plistlib "
    "argparse optparse getopt gettext locale tomllib base64 codecs pprint shlex stringprep "
    "reprlib _markupbase",
}
"""Subject -> the modules and packages whose docstrings have it."""

_SUBJECT_OF = {module: subject for subject, modules in SUBJECTS.items() for module in modules.split()}
# Some modules are named by plain words; those stay in the texts.
_PLAIN_WORDS = frozenset(
    re.findall(
        r"\S+",
        "abc ast calendar cmd code copy email enum io json keyword locale numbers operator os pickle profile "
        "queue random re signal socket stat string text trace traceback types warnings html http logging ssl "
        "csv trace collections concurrent statistics typing selectors dis",
    )
)
_NAMES = re.compile(
    r"(?i)(?<![a-z])("
    + "|".join(sorted((name for name in _SUBJECT_OF if name not in _PLAIN_WORDS), key=len, reverse=True))
    + r")(?![a-z])"
)
_DOTTED = re.compile(r"(?<![\w.])(" + "|".join(sorted(_PLAIN_WORDS)) + r")(?=\.\w)")
_SHORTEST, _LONGEST = 25, 300
_HELD_OUT_SHARE = 10  # one text in so many


def stdlib_labels(*, held_out: bool = False) -> list[tuple[str, str, str]]:
    """(text, subject, module:line) of every docstring to learn from, or of those kept for measuring."""
    return [example for example in _examples() if _is_held_out(example[0]) == held_out]


def _is_held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT_SHARE == 0


@cache
def _examples() -> tuple[tuple[str, str, str], ...]:
    """Every different docstring; one that stands under two subjects says nothing and is left out."""
    found: dict[str, tuple[str, str, str]] = {}
    subjects: dict[str, set[str]] = {}
    for text, subject, where in _docstrings():
        found.setdefault(text, (text, subject, where))
        subjects.setdefault(text, set()).add(subject)
    return tuple(example for text, example in found.items() if len(subjects[text]) == 1)


def _docstrings() -> Iterator[tuple[str, str, str]]:
    root, files = stdlib_files()
    for path in files:
        name = path.relative_to(root)
        subject = _SUBJECT_OF.get(name.parts[0].removesuffix(".py"))
        if subject is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings in the library are not ours to report
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
                text = _text(ast.get_docstring(node) or "")
                if len(text) >= _SHORTEST:
                    yield text, subject, f"{name.as_posix()}:{getattr(node, 'lineno', 1)}"


def _text(docstring: str) -> str:
    """The beginning of a docstring on one line, without the names of modules."""
    text = " ".join(docstring.split())
    text = _DOTTED.sub("_", _NAMES.sub("_", text))
    if len(text) > _LONGEST:
        text = text[: text.rfind(" ", 0, _LONGEST)]
    return text
