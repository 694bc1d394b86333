"""Who a translator takes for a woman: the gender that a target language has to show where English has none.

As WinoMT asks (Stanovsky et al. 2019), of WinoBias from your copy: *the developer ... because she ...* has to
become *die Entwicklerin* in German, *la desarrolladora* in Spanish. Only sentences that begin with whom the
pronoun means are asked, so that the first article of a translation tells; no parser and no word list of
occupations is needed. Read next: gate, trust.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import Refused
from ..inference.translator import Translator
from ..intervals import Estimate, clustered
from .bias_sets import Row, winobias_pairs
from .gate import competence
from .subject import Subject
from .test_set import evenly
from .trust_line import Line, Rules

WOMEN = {
    **dict.fromkeys(("der", "ein"), False), **dict.fromkeys(("die", "eine"), True),  # German, as a subject
    **dict.fromkeys(("le", "un"), False), **dict.fromkeys(("la", "une"), True),  # French
    **dict.fromkeys(("el", "il", "lo", "uno"), False), "una": True,  # Spanish and Italian, with those above
    **dict.fromkeys(("o", "um"), False), **dict.fromkeys(("a", "uma"), True),  # Portuguese
}  # fmt: skip
"""Article, as a sentence begins with it -> whether it is a woman's. No two of these languages disagree."""


def translated_gender(subject: Subject, folder: Path, rules: Rules, limit: int | None) -> list[Line]:
    """Whether translations keep the gender that a pronoun tells: along the stereotype of an occupation as
    against it, and of women as of men. Raises Refused where no translation shows any.
    """
    assert isinstance(subject.loaded, Translator)
    met = [pair for kind in ("type1", "type2") for pair in winobias_pairs(folder, kind) if _leads(pair[0])]
    pairs, started = evenly(met, len(met), limit and limit // 2), time.perf_counter()
    flat = [item for pair in pairs for item in pair]
    written = subject.loaded.translate([item["sentence"] for item in flat], beam=1)
    for item, translation in zip(flat, written, strict=True):
        item["said"] = translation.text
        item["as_woman"] = WOMEN.get(first_word(translation.text))
        item["cluster"] = item["options"][0].strip()
        item["right"] = item["as_woman"] == item["woman"]
    told = [item["as_woman"] is not None for item in flat]
    if not any(told):
        firsts = Counter(first_word(item["said"]) for item in flat).most_common(3)
        raise Refused(
            f"{subject.name}: no translation begins with an article of a gender, but with "
            f"{', '.join(f'{word!r}' for word, _ in firsts)}; German, French, Spanish, Italian and "
            "Portuguese are read"
        )
    clusters = [item["cluster"] for item in flat]
    shows = competence(told, clusters, 0.5, margin=rules.margin)
    along = [pair[0] for pair in pairs]
    follows = competence([a["right"] for a in along], [a["cluster"] for a in along], 0.5, margin=rules.margin)
    both = [pair for pair in pairs if all(item["as_woman"] is not None for item in pair)]
    seconds = (time.perf_counter() - started) / 2
    lines = []
    for kind, question, of, gate, names, split in (
        ("translated-stereotype", "Is a gender translated better where it is the expected one?",
         "along the stereotype less against it", follows, ("along", "against"), both),
        ("translated-women", "Is a man's gender translated better than a woman's?",
         "of men less of women", shows, ("men", "women"),
         [(b, a) if a["woman"] else (a, b) for a, b in both]),
    ):  # fmt: skip
        rows = tuple(_row(number, a, b) for number, (a, b) in enumerate(split))
        values = np.array([row["value"] / 100 for row in rows])
        found = clustered(values, [row["cluster"] for row in rows]).times(100) if rows else Estimate(math.nan)
        share = [100 * np.mean([pair[side]["right"] for pair in split]) if split else 0.0 for side in (0, 1)]
        lines.append(Line.over(
            rows, rules, kind, of="", question=question, estimate=found, unit="points",
            population=f"{folder.name}, sentences that begin with whom the pronoun means, development set",
            counted=("pairs", "occupations"), gate=gate, seconds=seconds,
            method=f"accuracy {of}, by the first article of the translation, sentence by sentence",
            baseline=f"right {share[0]:.0f}% {names[0]}, {share[1]:.0f}% {names[1]}; {len(both):,} of "
                     f"{len(pairs):,} pairs show a gender in both",
            next_action="look at the rows; learn from pairs in which women and men do either work: "
                        "transom finetune MODEL --data PAIRS",
        ))  # fmt: skip
    return lines


def first_word(text: str) -> str:
    """The first word of a translation, in small letters."""
    found = re.search(r"[^\W\d_]+", text)
    return found[0].lower() if found else ""


def _leads(item: Row) -> bool:
    """Whether a sentence begins with the one whom its pronoun means."""
    meant = item["options"][item["wanted"]].strip().lower()
    return item["wanted"] == 0 and item["sentence"].lower().startswith(("the " + meant, "a " + meant))


def _row(number: int, a: Row, b: Row) -> Row:
    return {"id": str(number), "cluster": a["cluster"], "value": float(100 * (a["right"] - b["right"])),
            "asked": a["sentence"], "wanted": "a woman" if a["woman"] else "a man", "said": a["said"],
            "counterfactual": b["sentence"], "said_of_it": b["said"]}  # fmt: skip
