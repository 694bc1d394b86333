"""A trust report: its lines for a terminal, as Markdown and as JSON, with the rows behind every number.

There is no score of scores: measures that look alike often disagree. What was not measured is said last.
`trust.json` is a record of the Every Eval Ever schema (0.2.1), whose free fields hold the rest as text.
Read next: trust_page, trust_diff.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.strict_json import read_json
from ..errors import Refused
from ..output import write_whole
from .trust_line import ORDER, Line

WIDE = 100
REPORT, ROWS, PAGE, WORDS = "trust.json", "trust.jsonl", "trust.html", "trust.md"


@dataclass(frozen=True)
class TrustReport:
    """What a model was asked, what came of it, and what nobody asked. It prints itself."""

    model: str
    lines: tuple[Line, ...]
    not_measured: tuple[str, ...]
    header: dict[str, str]
    """Hashes of model, tokenizer, data and rules; versions, command, date, languages, task, cost."""
    out: Path | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many lines have each word."""
        found = Counter(line.decision for line in self.lines)
        return {word: found[word] for word in ORDER if found[word]}

    @property
    def headline(self) -> str:
        return ", ".join(f"{n} {word}" for word, n in self.counts.items()) or "nothing was measured"

    def sorted(self) -> list[Line]:
        """The lines, what needs acting on first."""
        return sorted(self.lines, key=lambda line: ORDER.index(line.decision))

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.headline}", ""]
        for one in self.sorted():
            gate = [f"gate {one.gate}"] if one.gate is not None and not one.gate.passed else []
            facts = [
                one.answer,
                f"{one.rule}",
                f"n = {one.n:,} {one.counted[0]}, {one.n_clusters:,} {one.counted[1]}",
            ]
            lines += wrapped(f"{one.decision:<12}{one.question}", 12)
            lines += wrapped(" " * 12 + "; ".join([*facts, *gate]), 12)
            if one.decision in ("ACT", "WATCH"):
                lines += wrapped(f"{'':<12}-> {one.next_action}", 15)
        lines += ["", *wrapped(f"Not measured: {'; '.join(self.not_measured)}", 14)]
        if self.out is not None:
            lines += ["", f"{self.out / PAGE}: every number with its rows; {WORDS} and {REPORT} beside it"]
        return "\n".join(lines)

    def markdown(self) -> str:
        """Two pages for people."""
        made = "; ".join(f"{name} {value}" for name, value in self.header.items())
        parts = [f"# Trust report: {self.model}\n\n{self.headline}. {made}.\n"]
        for one in self.sorted():
            facts = {
                "answer": f"{one.answer} (95% interval)",
                "counted": one.counts_in_words,
                "of": one.population,
                "method": one.method,
                "beside": one.baseline,
                "gate": one.gate_in_words,
                "rule": str(one.rule),
                "smallest effect found 4 times of 5": one.smallest_in_words,
                "keep in mind": one.rule.critique,
                "next": one.next_action,
                "cost": f"{one.seconds:.1f} s",
            }
            said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
            also = "".join(f"\n  - {part}" for part in one.parts)
            parts.append(f"## {one.decision}: {one.question}\n\n{said}{also}\n")
        return "\n".join([*parts, f"**Not measured:** {'; '.join(self.not_measured)}.\n"])

    def record(self) -> dict[str, Any]:
        """A record of Every Eval Ever, as trust.json has it."""
        header = self.header
        timestamp = header["date"]
        return {
            "schema_version": "0.2.1",
            "evaluation_id": f"transom-trust/{self.model}/{timestamp}",
            "evaluation_timestamp": timestamp,
            "retrieved_timestamp": header["epoch"],
            "source_metadata": {
                "source_type": "evaluation_run",
                "source_organization_name": "local",
                "evaluator_relationship": "first_party",
                "additional_details": {
                    **header,
                    "not_measured": "; ".join(self.not_measured),
                    "lines": json.dumps([line.to_dict() for line in self.lines]),
                },
            },
            "eval_library": {"name": "transom", "version": header["transom"]},
            "model_info": {
                "name": self.model,
                "id": self.model,
                "additional_details": {"sha256": header["model"]},
            },
            "evaluation_results": [_result(line) for line in self.lines if line.is_read],
            "detailed_evaluation_results": {
                "format": "jsonl",
                "file_path": ROWS,
                "total_rows": sum(len(line.rows) for line in self.lines),
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the lines as they are, without the detour of that schema."""
        return {"model": self.model, "decisions": self.counts, "header": self.header,
                "lines": [line.to_dict() for line in self.lines], "not_measured": list(self.not_measured),
                "out": None if self.out is None else str(self.out)}  # fmt: skip

    def save(self, out: Path) -> None:
        """Write trust.json, trust.md, trust.html and the rows into a folder. Raises Refused."""
        from .trust_page import write_page

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"{out}: no folder can be made there ({error.strerror or error})") from None
        rows = "".join(
            json.dumps({"line": line.id, **row}) + "\n" for line in self.lines for row in line.rows
        )
        write_whole(out / ROWS, rows)
        write_whole(out / WORDS, self.markdown())
        write_page(out / PAGE, self)
        write_whole(out / REPORT, json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n")


def _result(line: Line) -> dict[str, Any]:
    """A line whose number is read, as a result of the schema."""
    found = line.estimate
    ends = {"lower": found.low, "upper": found.high, "confidence_level": 0.95, "method": line.method}
    return {
        "evaluation_name": line.id,
        "source_data": {"dataset_name": line.population, "source_type": "other"},
        "metric_config": {
            "evaluation_description": line.question, "lower_is_better": line.rule.side != "below",
            "score_type": "continuous", "min_score": -100.0, "max_score": 100.0,
        },
        "score_details": {"score": found.value,
                          "uncertainty": {"confidence_interval": ends, "num_samples": line.n}},
    }  # fmt: skip


def saved(folder: Path) -> tuple[str, dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """A report that was saved: its model, its lines by id, and the rows of each. Raises Refused for none."""
    if not (folder / REPORT).is_file():
        raise Refused(f"{folder}: no trust report; make one: transom trust MODEL --out {folder}")
    try:
        document = read_json(folder / REPORT)
        told = json.loads(document["source_metadata"]["additional_details"]["lines"])
        lines = {one["id"]: one for one in told}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in lines}
        for text in (folder / ROWS).read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            rows[row["line"]].append(row)
        return document["model_info"]["name"], lines, rows
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise Refused(
            f"{folder}: its {REPORT} or {ROWS} is no report of this kind ({error!r}); make it again"
        ) from None


def wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDE, subsequent_indent=" " * indent, drop_whitespace=True) or [""]
