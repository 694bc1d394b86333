"""`transom lab report`: all claims on one page, from what their runs left; no script, no network.

Read next: claim_run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.strict_json import read_json
from ..errors import Refused
from ..insight.html import Markup, Picture, tag, write
from ..insight.reading import WORDS, words_in
from .claim_run import FIGURE, RESULT, shown

CAT, GLASS_BOX = "cat.json", "backprop.svg"
TITLE = "Transformers, tested"
LEAD = (
    "What textbooks say of Transformers, each sentence put to the test on one machine: what would refute it "
    "was written down before the run, and the verdict is computed from that."
)
MEANT = {
    "falsifier": "what would refute a prediction, written down before anything was measured: the whole 95% "
    "interval on the wrong side of a bound",
    "95% interval": "what a figure might have been with other seeds and questions of the same kind",
    "seed": "what decides a model's first weights and the order of its data; a spread over seeds is chance",
    "undecided": "the interval lies on both sides of the bound: it may be either. With few seeds it is "
    "called “cannot tell”",
    "control": "what a model must have learned for its failures to say anything; else it is undertrained, "
    "and nothing follows",
    "cause taken away": "planted: the same test without what the claim hangs on; its verdict must flip",
    **{word: WORDS[word] for word in ("token", "nats", "layer", "gradient", "entropy", "expert")},
}
"""Word -> what it means; docs/glossary.md has them with examples."""
WRAPPED = "white-space:normal"
SIGNS = {
    "holds": "✓",
    "holds in part": "◐",
    "refuted": "✗",
    "undecided": "?",
    "inconclusive: undertrained": "–",
}
"""A sign for each verdict, so that none is told by colour."""


def write_report(folder: Path, page: Path) -> Path:
    """Write the page of all results below `folder`. Raises Refused where there are none."""
    found = results(folder)
    extra = [*_glass_box(folder), *_cat(folder)]
    if not found and not extra:
        raise Refused(f"{folder}: no result of a claim; transom lab all --quick makes them")
    rows = [
        tag("tr", tag("th", record["number"]),
            tag("td", f"{SIGNS[record['verdict']]} {record['verdict']}", style=WRAPPED),
            tag("td", record["claim"], style=f"{WRAPPED};background:none"))
        for record, _, _ in found
    ]  # fmt: skip
    pictures = [*(_picture(*one) for one in found), *extra]
    words = words_in(" ".join(f"{one.title} {one.body}" for one in pictures).lower(), MEANT)
    table = tag("section", tag("h2", "Verdicts"), tag("table", tag("tbody", *rows)), words, class_="opening")
    return write(page, TITLE, pictures, LEAD, table)


def results(folder: Path) -> list[tuple[dict[str, Any], str, dict[str, Any] | None]]:
    """Of each claim the full result or else the quick one, its figure, and the one with a cause planted."""
    found = []
    for claim in sorted(path for path in folder.glob("*") if path.is_dir()):
        kept = {mode: read_json(path) for mode in ("full", "quick", "full-planted", "quick-planted")
                if (path := claim / mode / RESULT).is_file()}  # fmt: skip
        whole = {mode: record for mode, record in kept.items() if "sentence" in record}
        mode = next((mode for mode in ("full", "quick") if mode in whole), None)
        if mode is not None:
            figure = (claim / mode / FIGURE).read_text(encoding="utf-8")
            found.append((whole[mode], figure, whole.get(f"{mode}-planted")))
    return sorted(found, key=lambda one: one[0]["number"])


def _picture(record: dict[str, Any], figure: str, planted: dict[str, Any] | None) -> Picture:
    """One claim as a part of the page."""
    said = [("The textbook", record["textbook"]), ("What we expected", record["expected"]),
            ("How it was put to the test", record["protocol"])]  # fmt: skip
    parts = [tag("p", tag("b", f"{name}. "), text) for name, text in said]
    parts += [Markup(figure), tag("p", tag("b", "Verdict: "), f"{record['verdict']}. {record['sentence']}")]
    if planted is not None:
        flipped = f"{planted['planted']}. Then: {planted['verdict']}. {planted['sentence']}"
        parts.append(tag("p", tag("b", "With its cause taken away: "), flipped))
    tests = [f"“{one['says']}” would be refuted if {one['refuted_if']}." for one in record["falsifier"]]
    tests += [f"Control: {one['says']}." for one in record["controls"]]
    readings = [tag("tr", tag("th", name, style=WRAPPED), tag("td", shown(reading)))
                for name, reading in record["readings"].items()]  # fmt: skip
    parts.append(
        tag("details", tag("summary", "The falsifier, written before the run, and what was read"),
            tag("ul", *[tag("li", test) for test in tests]),
            tag("table", tag("tbody", *readings)))
    )  # fmt: skip
    parts.append(tag("p", tag("b", "Run it again: "), tag("code", record["rerun"])))
    ran = f"{record['mode']}, {len(record['seeds'])} seeds, {record['seconds']:.0f} s on {record['cpu']}"
    title, torch = f"{record['number']}. {record['claim']}", record["versions"]["torch"]
    caveat = f"not shown is {record['not_shown']}"
    return Picture(title, tag("div", *parts), "", caveat, f"{ran}, torch {torch}")


def _glass_box(folder: Path) -> list[Picture]:
    """The check that comes before all claims."""
    if not (folder / GLASS_BOX).is_file():
        return []
    body = Markup((folder / GLASS_BOX).read_text(encoding="utf-8"))
    return [Picture("The instrument: the chain rule for one weight, by hand and by autograd",
                    tag("div", body, tag("p", tag("code", "transom lab backprop"))), "")]  # fmt: skip


def _cat(folder: Path) -> list[Picture]:
    """What the head of the textbooks' picture looks at."""
    if not (folder / CAT).is_file():
        return []
    record = read_json(folder / CAT)
    parts = [tag("p", arm["verdict"]) for arm in record["arms"]]
    parts += [tag("p", tag("b", "Verdict: "), record["verdict"]), tag("p", tag("code", "transom lab cat"))]
    return [Picture("Which word does “it” look at?", tag("div", *parts), "", record["caveat"])]
