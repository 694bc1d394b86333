"""Two models of every kind on the same examples: exactly equal to itself, apart from another, or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transom
from tests.evaluation.members import ENCODED, MEMBERS, write_model
from transom import __main__ as door
from transom.data.pairs import Pair
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.evaluation.recall import find_partners

LABELS = ("grass", "sea", "sky")
ENCODER: dict[str, Any] = dict(tokenizer=ENCODED, vocab_size=ENCODED.vocab_size, kind="encoder",
                               position="learned", n_kv_heads=4)  # fmt: skip
CLASSIFIER: dict[str, Any] = ENCODER | dict(head="classify", labels=LABELS, tie_embeddings=False)
EMBEDDER: dict[str, Any] = ENCODER | dict(head="embed", pooling="mean", normalize=True, tie_embeddings=False)
TRANSLATOR: dict[str, Any] = dict(
    tokenizer=train_tokenizer("bytes", iter(["any text"]), 258, frame="target"), kind="encoder-decoder",
    n_encoder_layers=1, n_layers=1, start_id=257, norm="layer", position="sinusoidal", n_kv_heads=4,
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    **MEMBERS, "masks": ENCODER, "classifier": CLASSIFIER, "embedder": EMBEDDER, "translator": TRANSLATOR,
}  # fmt: skip


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files to test each kind with."""
    folder, rng = tmp_path_factory.mktemp("tests"), np.random.default_rng(0)
    words = ["green", "blue", "wide", "salt", "cloud", "blade", "wave"]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(40)]
    (folder / "text.txt").write_text("\n".join(texts * 4))
    (folder / "classes.tsv").write_text("text\tlabel\n" + "".join(
        f"{text}\t{LABELS[i % 3]}\n" for i, text in enumerate(texts)))  # fmt: skip
    (folder / "pairs.tsv").write_text("source\ttarget\n" + "".join(
        f"{text}\t{text.upper()[:20]} {i}\n" for i, text in enumerate(texts)))  # fmt: skip
    file = {"classifier": "classes.tsv", "embedder": "pairs.tsv", "translator": "pairs.tsv"}
    return {kind: str(folder / file.get(kind, "text.txt")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_exactly_itself_and_not_another(kind: str, tests: dict[str, str], tmp_path: Path) -> None:
    one, other = (write_model(tmp_path / f"{kind}-{seed}", seed, **KINDS[kind]) for seed in (0, 1))
    same = transom.evaluate(one, against=one, test=tests[kind], beam=1)
    assert same.verdict == "no measurable improvement" and same.examples == ()
    for measure in same.measures:
        gap = measure.difference
        assert (gap.value, gap.low, gap.high) == (0, 0, 0) and not measure.wins and not measure.losses
        assert repr(measure.before) == repr(measure.after) and "exactly equal" in measure.sentence
    apart = transom.evaluate(one, against=other, test=tests[kind], beam=1)
    back = transom.evaluate(other, against=one, test=tests[kind], beam=1)
    assert apart.sides == (f"{kind}-1", f"{kind}-0") and apart.examples
    for there, again in zip(apart.measures, back.measures, strict=True):
        assert there.difference.value == pytest.approx(-again.difference.value, abs=1e-9)
        assert (there.wins, there.losses) == (again.losses, again.wins)
        assert repr(there.before) == repr(again.after)
    gains = [example.gain for example in apart.examples]
    assert gains == sorted(gains)


@pytest.mark.parametrize("kind", ["decoder", "classifier"])
def test_the_command_line_prints_it_and_json(
    kind: str, tests: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (write_model(tmp_path / f"{kind}-{seed}", seed, **KINDS[kind]) for seed in (0, 1))
    words = ["evaluate", str(one), "--against", str(other), "--test", tests[kind]]
    assert door.run(words) == 0
    said = capsys.readouterr().out
    assert "95% interval" in said and "verdict: " in said and "worst for the model first" in said
    assert max(map(len, said.splitlines()[1:])) <= 160
    assert door.run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] in ("better", "no measurable improvement", "harmed") and told["measures"]


def test_models_that_spell_differently_are_compared_by_the_byte(
    tmp_path: Path, tests: dict[str, str]
) -> None:
    chars = train_tokenizer("bpe", iter([Path(tests["decoder"]).read_text()]), 300)
    one = write_model(tmp_path / "bpe", tokenizer=chars, vocab_size=chars.vocab_size)
    other = write_model(tmp_path / "bytes")
    found = transom.evaluate(one, against=other, test=tests["decoder"])
    assert [measure.name for measure in found.measures] == ["bits per byte"]
    assert "compared by the byte" in str(found)


def test_columns_of_a_test_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the run where the test has them, those that --map names, or those that are told by name."""
    folder = write_model(tmp_path / "model", max_len=128)
    run = tmp_path / "run"
    (run / "model").parent.mkdir()
    shutil.copytree(folder, run / "model")
    (run / "settings.toml").write_text('task = "sft"\n[data]\nmap = ["prompt=Q", "completion=A"]\n')
    for name, asked, answered in (("own", "Q", "A"), ("usual", "prompt", "completion"), ("other", "x", "y")):
        rows = [{asked: f"What is {i}?", answered: f"It is {i}."} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scored(name: str, *more: str) -> int:
        test = str(tmp_path / f"{name}.jsonl")
        return door.run(["evaluate", str(run), "--against", str(run), "--test", test, *more])

    assert scored("own") == scored("usual") == 0
    assert scored("other", "--map", "prompt=x", "--map", "completion=y") == 0
    assert capsys.readouterr().out.count("nats per answer token") >= 3
    assert scored("other") == 2
    assert "which field holds the text? The record has x, y: set --map text=COLUMN" in capsys.readouterr().err
    assert scored("other", "--map", "prompt=x") == 2
    assert "add --map completion=COLUMN; it has x, y" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path: Path, tests: dict[str, str]) -> None:
    decoder = write_model(tmp_path / "decoder")
    classifier = write_model(tmp_path / "classifier", **CLASSIFIER)
    with pytest.raises(Refused, match="holds a Generator and .* a Classifier; two models of one kind"):
        transom.evaluate(decoder, against=classifier, test=tests["decoder"])
    with pytest.raises(Refused, match="lies in no run that held examples out; name some by --test FILE"):
        transom.evaluate(classifier, against=classifier)
    strange = tmp_path / "strange.tsv"
    strange.write_text("text\tlabel\n" + "a text\tdesert\nmore\tsea\n" * 20)
    with pytest.raises(Refused, match="does not know the class 'desert'"):
        transom.evaluate(classifier, against=classifier, test=str(strange))
    with pytest.raises(Refused, match="leave out --train"):
        transom.evaluate(decoder, against=decoder, test=tests["decoder"], train="x")  # type: ignore[call-overload]
    embedder = write_model(tmp_path / "embedder", **EMBEDDER)
    with pytest.raises(Refused, match="hold it against another one"):
        transom.evaluate(embedder, test=tests["embedder"])


@dataclass
class Planted:
    """Embeds texts as it is told."""

    vectors: dict[str, list[float]]

    def embed(self, texts: list[str], *, cut: bool = False) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], np.float32)


def test_a_partner_has_the_rank_that_its_place_among_all_gives_it() -> None:
    pairs = [Pair("a", "A", "1"), Pair("b", "B", "2"), Pair("c", "C", "3"), Pair("d", "A", "4")]
    planted = Planted({"a": [1, 0], "b": [0, 2], "c": [1, 0.1], "d": [3, 0.2],
                       "A": [5, 0], "B": [0.1, 1], "C": [0, 1]})  # fmt: skip
    found = find_partners(planted, pairs)  # type: ignore[arg-type]
    assert found.ranks.tolist() == [1, 2, 4, 1]  # a text equal to the partner is no rival
    assert pairs[found.nearest[2]].target == "A" and found.right.tolist() == [True, False, False, True]
