"""`--input FILE --out FILE`: the rows of a file of any size answered, whatever happens meanwhile.

Shards of rows are answered by whoever has time and kept one by one, whole, in OUT.parts; once all are there
they are put together in the order of the rows, and OUT appears. The same command after a kill goes on with
what is missing, and gives the same bytes. Read next: shard, workers, transom.data.row_writer.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from transom.checkpoint.hub import resolve
from transom.checkpoint.manifest import fingerprint
from transom.data.documents import printable
from transom.data.lines import Asked, file_rows, no_text
from transom.data.row_writer import ERROR, Row, RowWriter, answers_file
from transom.data.rows import RowFile
from transom.errors import Refused
from transom.hardware import Hardware, physical_cores
from transom.output import whole_file, write_whole
from transom.units import counted, format_time

from .answers import doubts, learned_field
from .load import foreseen
from .shard import VERBS, Job
from .workers import workers_for

JOB, LOCK = "job.json", ".lock"
TELL_EVERY = 10.0
"""Seconds."""
COPIES, OWN = 4, 1 << 30
"""What a worker takes of memory: its weights so many times (widened, laid out anew), and bytes besides."""
NAMED = 3
"""Rows without an answer that are named; all have their reason in the file."""


@dataclass(frozen=True)
class Written:
    """What became of the rows of a file."""

    out: Path
    n_rows: int
    unanswered: list[tuple[int, str]]
    """The line of each row that has no answer, and why."""
    where: str
    doubts: str = ""

    def __str__(self) -> str:
        lines = [f"{counted(self.n_rows, 'row')}: {self.out}"]
        if self.unanswered:
            n = len(self.unanswered)
            lines.append(f"{n:,} without an answer; the column '{ERROR}' says why:")
            lines += [f"  {self.where}:{line}: {why}" for line, why in self.unanswered[:NAMED]]
            lines += [f"  and {n - NAMED:,} more"] if n > NAMED else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        unanswered = [{"line": line, "error": why} for line, why in self.unanswered]
        return {"out": str(self.out), "rows": self.n_rows, "unanswered": unanswered}


class Batch:
    """A file of rows, what is to be done with them, and how far that has come."""

    def __init__(
        self,
        verb: str,
        model: str,
        file: Path,
        out: Path,
        *,
        settings: dict[str, Any],
        field: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        weights: str | None = None,
        workers: int | None = None,
        deterministic: bool = False,
        n_rows: int | None = None,
    ) -> None:
        """Read all rows once. settings: of the verb. dtype, device, weights: as `load` takes them. workers:
        at a time on this machine. deterministic: the bytes that come of it depend on no number of cores,
        workers or machines. n_rows: of a shard.

        Raises Refused for what is no row, with its line, and for rows that a file like `out` has no room for.
        """
        self.out, self.source = answers_file(out, file), RowFile(file, printable(file))
        if workers is not None and workers < 1:
            raise Refused(f"--workers {workers}: at least one has to work")
        self.verb, self.model, folder = VERBS[verb], model, resolve(model)
        kind, numbers, where = foreseen(folder, dtype=dtype, device=device)
        if kind != self.verb.kind:
            fit = next(
                (f"use transom {name}" for name, one in VERBS.items() if one.kind == kind), "it has no rows"
            )
            raise Refused(f"{model} is a {kind}; {fit}")
        self.field = learned_field(model, file) if field is None else field
        self.n = self.n_faults = n_texts = 0

        def rows() -> Iterator[Row]:
            nonlocal n_texts
            for one in self._asked():
                self.n += 1
                self.n_faults += one.fault is not None
                n_texts += bool(one.text.strip())
                yield one.row

        self.writer = RowWriter.of(out, rows(), self.verb.columns, file)
        self.state = self.source.state
        if not (n_texts or self.n_faults):
            raise no_text(str(file))
        self.n_rows = n_rows or self.verb.n_rows
        self.shards = range(-(-self.n // self.n_rows))
        self.workers = workers
        self.asked = {"dtype asked": dtype, "deterministic": deterministic}
        n = workers or _fitting(folder, where, len(self.shards))
        self.job = Job(
            verb=verb,
            model=str(folder) if os.path.exists(model) else model,
            fingerprint=fingerprint(folder),
            settings=settings,
            dtype=numbers,
            device=device or where.partition(":")[0],
            weights=weights,
            threads=1 if deterministic else max(1, physical_cores() // n),
        )
        self.parts = out.with_name(f"{out.name}.parts")

    def run(self, *, ray: str | None = None, tell: Callable[[str], None] = lambda _: None) -> Written:
        """Answer what has no answer yet, and write the file. ray: the address of a cluster, or `local`.

        Raises Refused where the job cannot be done, and where another one lies half done under the same name;
        what was answered until then is kept.
        """
        self.parts.mkdir(exist_ok=True)
        try:
            with FileLock(self.parts / LOCK).acquire(timeout=0):
                self._take_up()
                try:
                    self._answer(ray, tell)
                except BaseException:
                    if not any(self._shard(index).exists() for index in self.shards):
                        self._clear()
                    raise
                return self._put_together()
        except Timeout:
            raise Refused(
                f"{self.out}: another process writes it, in {self.parts.name}; wait for it"
            ) from None

    def _asked(self) -> Iterator[Asked]:
        return file_rows(self.source.path, self.field)

    def _shard(self, index: int) -> Path:
        return self.parts / f"{index:06}.jsonl"

    def _take_up(self) -> None:
        """Go on with what lies in the folder if it is of this very job, in the same numbers and threads."""
        rows = {"input": self.source.fingerprint(), "field": self.field, "rows of a shard": self.n_rows}
        mine = json.loads(json.dumps(rows | self.asked | vars(self.job)))
        del mine["model"]  # its weights count, not their place
        record = self.parts / JOB
        if not record.exists():
            for leftover in filter(Path.exists, map(self._shard, self.shards)):
                leftover.unlink()  # a kill came while the folder was cleared
            write_whole(record, json.dumps(mine, indent=1))
            return
        there = json.loads(record.read_text(encoding="utf-8"))
        settled = {name: there[name] for name in ("dtype", "threads")}  # by what was measured then
        self.job, mine = replace(self.job, **settled), mine | settled
        if other := [name for name in mine if mine[name] != there.get(name)]:
            raise Refused(
                f"{self.parts} holds what an unfinished run wrote with other {_listed(other)}; give the same"
                " command as then, name another --out, or delete that folder to begin anew"
            )

    def _answer(self, ray: str | None, tell: Callable[[str], None]) -> None:
        """Have the shards computed that are not there."""
        left = [index for index in self.shards if not self._shard(index).exists()]
        n_there, began, told = len(self.shards) - len(left), time.monotonic(), 0.0
        if n_there:
            tell(f"going on: {self._rows_of(n_there):,} of {self.n:,} rows are done")
        if not left:
            return
        n = self.workers or max(1, physical_cores() // self.job.threads)
        n = n if self.job.device == "cpu" else 1
        pending: dict[Future[bytes | Refused], int] = {}
        with workers_for(self.job, min(n, len(left)), ray) as workers:

            def keep() -> None:
                nonlocal n_there, told
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    index = pending.pop(done)
                    try:
                        made = done.result()
                    except workers.lost as error:
                        says = f"a worker died over rows {index * self.n_rows + 1:,} and on ({_brief(error)})"
                        fix = "what is done is kept: the same command goes on; --workers 1 takes least memory"
                        raise Refused(f"{says}; {fix}") from None
                    if isinstance(made, Refused):
                        raise made
                    write_whole(self._shard(index), made)
                    n_there += 1
                if n_there < len(self.shards) and (now := time.monotonic() - began) > told + TELL_EVERY:
                    told, n_done = now, n_there - len(self.shards) + len(left)
                    rest = format_time(round(now / n_done * (len(self.shards) - n_there)))
                    tell(f"{self._rows_of(n_there):,} of {self.n:,} rows, about {rest} left")

            missing, asked = {*left}, self._asked()
            for index in self.shards:
                some = list(itertools.islice(asked, self.n_rows))
                if index in missing:
                    texts = [None if one.fault else one.text for one in some]
                    pending[workers.submit(self.job, texts)] = index
                while len(pending) >= workers.at_once:
                    keep()
            while pending:
                keep()

    def _rows_of(self, n_shards: int) -> int:
        return min(self.n, n_shards * self.n_rows)

    def _put_together(self) -> Written:
        """Write the rows with their answers in order, and clear the folder."""
        if self.source.state != self.state:
            raise Refused(f"{self.source.where}: it was changed while it was read; give the command again")
        n_refused = sum(int(next(_lines(self._shard(index)))) for index in self.shards)
        unanswered: list[tuple[int, str]] = []
        sure: list[float] = []

        def rows() -> Iterator[Row]:
            lines = (
                line
                for index in self.shards
                for line in itertools.islice(_lines(self._shard(index)), 1, None)
            )
            for one, line in zip(self._asked(), lines, strict=True):
                columns, sureness = json.loads(line)
                if one.fault is not None:
                    columns = {ERROR: str(one.fault).removeprefix(f"{self.source.where}:{one.line}: ")}
                if ERROR in columns:
                    unanswered.append((one.line, columns[ERROR]))
                sure.append(math.inf if sureness is None else sureness)
                yield one.row | columns

        made = self.parts / self.out.name
        with whole_file(made) as file:
            self.writer.write(file, rows(), errors=bool(n_refused + self.n_faults))
        made.replace(self.out)
        self._clear()
        return Written(self.out, self.n, unanswered, self.source.where, doubts(self.model, sure))

    def _clear(self) -> None:
        """Remove the folder and what is ours in it, its record first: without it nothing there counts."""
        ours = re.compile(rf"\.tmp-.*|\d{{6,}}\.jsonl|{re.escape(self.out.name)}|{re.escape(LOCK)}")
        (self.parts / JOB).unlink(missing_ok=True)
        for path in self.parts.iterdir():
            if ours.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # something of somebody else's is there
            self.parts.rmdir()


def _lines(shard: Path) -> Iterator[str]:
    with open(shard, encoding="utf-8") as file:
        yield from file


def _fitting(model: Path, device: str, most: int) -> int:
    """How many workers this machine has cores and memory for; of another device one."""
    if device != "cpu":
        return 1
    weights = [model] if model.is_file() else model.glob("*.safetensors")
    size = sum(path.stat().st_size for path in weights)
    return max(1, min(most, physical_cores(), Hardware.detect("cpu").ram // (COPIES * size + OWN)))


def _listed(names: list[str]) -> str:
    called = {"fingerprint": "weights of the model", "weights": "--weights"}
    return " and ".join(called.get(name, name) for name in names)


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
