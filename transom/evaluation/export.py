"""A model written for other tools, and proven before it is called done.

Whatever is written is read back while it still has no name: the same tokens for a text with everything odd in
it, the same weights (to the bit, where they are not packed), and the loss on a text beside that of the model
it was made of. Where llama-cpp-python is installed a GGUF file is read by llama.cpp too, and both write on
after the same prompts. Read next: llama_cpp, checkpoint.gguf_writer, data.modelfile.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.adapter import is_adapter
from ..checkpoint.families import family_for
from ..checkpoint.folder import commit
from ..checkpoint.generation import load_generation
from ..checkpoint.gguf_writer import DTYPES, save_gguf
from ..checkpoint.hub import name_of, resolve
from ..checkpoint.huggingface import empty_model, load_config, save_model
from ..checkpoint.sentence import read_classes, write_classes
from ..data.documents import Document
from ..data.gguf_file import SUFFIX
from ..data.modelfile import PARAMETERS, modelfile, scaffold_of
from ..data.samples import stdlib_prose
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..inference.generator import Generator
from ..inference.load import load
from ..intervals import Estimate, paired_bootstrap
from ..model.config import ModelConfig
from ..output import unused, whole_file
from ..training.run import task_of
from ..training.task_facts import TASK_FACTS
from .llama_cpp import Agreement, compare
from .perplexity import Passage, TextScore, by_unit, nats_per_token, passages, score_text
from .test_set import origin_of, texts

TARGETS = ("gguf", "ollama", "hf", "sentence-transformers")
FOLDER_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PROBE = (
    "Hello, World! It's 12345 and 3.14; we'll see.\n\n\tdef f(x):\n        return x**2  # ok\r\n"
    " naïve café — Übung “quoted” 日本語 Привет עברית ½ ² ﬁ e\u0301 🙂👩\u200d👩\u200d👧 "
    "<|endoftext|> </s> [PAD]  \n "
)
"""What breaks tokenizers: digits, spaces, line ends, accents, scripts, emoji, and names of control tokens."""
CHARACTERS = 16_000
"""Of the text on which losses are compared."""
BOUNDS = {"f32": 1e-3, "f16": 0.01, "bf16": 0.03, "q8_0": 0.03, "q4_0": 1.0}
"""Nats per token that a format may cost; more is a mistake of ours, not rounding."""
CLASSES_CARD = """---
library_name: sentence-transformers
pipeline_tag: text-classification
tags: [transom]
---
# A classifier of texts

The vector of a text holds the scores of its classes, the highest being the likeliest:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("THIS_FOLDER")
labels = model[0].auto_model.config.id2label
print([labels[int(scores.argmax())] for scores in model.encode(["A text", "and another"])])
```
"""
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 16, 64


@dataclass(frozen=True)
class Loss:
    """Nats per token of a text, before and after."""

    before: TextScore
    after: TextScore

    @property
    def difference(self) -> Estimate:
        """By how much it rose, passage by passage."""
        rows = [by_unit(one.rows, one.documents) for one in (self.after, self.before)]
        return paired_bootstrap(rows[0], rows[1], nats_per_token, telling=len(rows[0]))

    def __str__(self) -> str:
        rose = self.difference
        return (
            f"loss on {self.before.test}: {self.before.loss.value:.4f} nats per token before, "
            f"{self.after.loss.value:.4f} after ({rose.value:+.4f}, {rose.interval(4)}; "
            f"{self.before.n_tokens:,} tokens)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "text": self.before.test, "tokens": self.before.n_tokens, "before": self.before.loss.value,
            "after": self.after.loss.value, "difference": self.difference.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found when it was read back. It prints itself."""

    model: str
    to: str
    dtype: str
    path: Path
    n_bytes: int
    proof: str
    """What was the same after reading back, in words."""
    loss: Loss | None
    llama_cpp: Agreement | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"wrote {self.path} ({self.n_bytes / 1e6:,.1f} MB, {self.dtype})",
            f"read back: {self.proof}",
        ]
        if self.loss is not None:
            lines.append(str(self.loss))
        if self.llama_cpp is not None:
            lines.append(f"llama.cpp: {self.llama_cpp}")
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model, "to": self.to, "dtype": self.dtype, "path": str(self.path),
            "bytes": self.n_bytes, "proof": self.proof,
            "loss": None if self.loss is None else self.loss.to_dict(),
            "llama_cpp": None if self.llama_cpp is None else self.llama_cpp.to_dict(),
            "notes": list(self.notes),
        }  # fmt: skip


def export(
    model: str | Path,
    to: str,
    *,
    out: Path | None = None,
    dtype: str | None = None,
    test: str | None = None,
) -> Exported:
    """Write a model as a GGUF file, a folder for Ollama, or a folder as the hub has them.

    An adapter is merged into its base. to: one of TARGETS. out: where it goes, else beside where one is.
    dtype: how weights are kept, f16 for GGUF and f32 for folders where nobody says. test: a text to compare
    losses on. Raises Refused for what cannot be written so, and where what was written is not what was meant;
    then nothing is left.
    """
    folder = resolve(model)
    dtype = dtype or ("f16" if to in ("gguf", "ollama") else "f32")
    _check(folder, to, dtype)
    if to == "gguf" and out is not None and out.suffix != SUFFIX:
        raise Refused(f"--out {out}: the name of a GGUF file ends in {SUFFIX}")
    loaded: Any = load(folder, dtype="float32", device="cpu", merge=True)
    source = _Source(str(model), folder, loaded, to, dtype, _passages(model, test))
    name = name_of(folder)
    if to == "gguf":
        path = out or unused(f"{name}-{dtype}{SUFFIX}")
        with whole_file(path) as file:
            return source.gguf(file, path, name)
    path = out or Path(f"{name}-{to}")
    with commit(path) as temporary:
        return source.ollama(temporary, path, name) if to == "ollama" else source.folder_of(temporary, path)


def _check(folder: Path, to: str, dtype: str) -> None:
    """Raise Refused for what there is no such file of, before any weight is read."""
    if to not in TARGETS or dtype not in DTYPES:
        raise Refused(f"--to is one of {', '.join(TARGETS)}; --dtype one of {', '.join(DTYPES)}")
    config, _ = load_config(folder)
    fits = family_for(config) is not None
    kind = config.cell or (config.kind if config.kind != "encoder" else f"encoder that can {config.head}")
    if to in ("gguf", "ollama"):
        if config.cell is not None or config.kind != "decoder":
            way = "; --to hf writes it" if fits else ""
            raise Refused(f"{folder}: no GGUF is written of this {kind}, only of decoders{way}")
        return
    if config.cell is not None:
        raise Refused(f"{folder}: this {kind} stays in Transom's own format; transformers has no such model")
    if dtype not in FOLDER_DTYPES:
        raise Refused(f"--dtype {dtype} is for GGUF; a folder holds {', '.join(FOLDER_DTYPES)}")
    if config.kind == "encoder" and config.head == "classify" and not fits:  # by the mean of all positions
        fits = family_for(_without_classes(config)) is not None
        if to == "hf" and fits:
            raise Refused(
                f"{folder}: transformers tells classes by the first position of a text, and this {kind} by "
                "the mean of all; --to sentence-transformers writes it, or --model.pooling first when it is "
                "fine-tuned makes one that --to hf writes"
            )
    if not fits:
        raise Refused(f"{folder}: this {kind} stays in Transom's own format; no other tool has its parts")
    if to == "sentence-transformers" and (
        config.kind != "encoder" or config.head not in ("embed", "classify")
    ):
        raise Refused(f"{folder}: this {kind} makes no vectors; --to hf writes it")


def _without_classes(config: ModelConfig) -> ModelConfig:
    """The encoder of a classifier, with the vector that its classes are told by."""
    return config.with_(head="embed", labels=(), normalize=False)


def _passages(model: str | Path, test: str | None) -> tuple[list[Passage], str]:
    """The text that is named, else what the run of a model held out, else prose that Python carries."""
    origin = origin_of(model)
    held_out = origin.run is not None and TASK_FACTS[task_of(origin.run)].running
    with nullcontext() if test is not None else suppress(Refused):  # what a run learned from may be gone
        if test is not None or held_out:
            documents, name = texts((origin,), test)
            return passages(documents, CHARACTERS), name
    prose = (Document(where, 1, [text]) for text, where in stdlib_prose(CHARACTERS))
    return passages(prose, CHARACTERS), "prose of Python's library"


@dataclass(frozen=True)
class _Source:
    """The model that is written, loaded in float32, and how it is asked to be written."""

    name: str
    folder: Path
    loaded: Any
    to: str
    dtype: str
    text: tuple[list[Passage], str]
    """What losses are compared on, and what it is called."""

    def gguf(self, file: Path, path: Path, name: str) -> Exported:
        """Write and prove one GGUF file that will be called `path`."""
        generator: Generator = self.loaded
        ends = set(generator.eos_ids)
        if generator.template is not None:
            ends |= generator.template.end_ids(generator.tokenizer)
        said = load_generation(self.folder)
        half = save_gguf(
            file, generator.model, generator.tokenizer, said, dtype=self.dtype, name=name, ends=ends
        )
        back = load(file, Generator, dtype="float32", device="cpu")
        proof = self._proof(back, exact=self.dtype == "f32")
        loss = self._loss(back)
        agreement = compare(file, back, PROBE, self._prompts(back.tokenizer), NEW_TOKENS)
        if agreement is not None and (why := agreement.wrong):
            raise Refused(f"{path} was not written: llama.cpp reads it otherwise: {why}; please report this")
        notes = [f"{len(half)} matrices are f16: their rows are no multiple of 32"] if half else []
        if agreement is None:
            notes.append("llama-cpp-python is not installed, so llama.cpp was not asked")
        return self._exported(path, file.stat().st_size, proof, loss, agreement, notes)

    def ollama(self, temporary: Path, path: Path, name: str) -> Exported:
        """Write and prove a folder with a GGUF file and its Modelfile."""
        generator: Generator = self.loaded
        file = temporary / f"model{SUFFIX}"
        made = self.gguf(file, file, name)
        template, tokenizer = generator.template, generator.tokenizer
        scaffold = None if template is None else scaffold_of(template, tokenizer)
        ends = set(generator.eos_ids)
        if template is not None:
            ends |= template.end_ids(tokenizer)
        stops = [tokenizer.token(one) for one in sorted(ends)]
        usual = generator.generation.draws({}, chat=template is not None)
        said = {**usual, "repeat_penalty": usual.get("repetition_penalty"),
                "num_ctx": generator.model.config.max_len}  # fmt: skip
        parameters = {name: said[name] for name in PARAMETERS if said.get(name) is not None}
        more = () if template is None else template.stop
        text = modelfile(scaffold, file=file.name, stops=[*stops, *more], parameters=parameters,
                         chats=template is not None)  # fmt: skip
        (temporary / "Modelfile").write_text(text, encoding="utf-8")
        notes = [*made.notes, f"next: ollama create {name} -f {path / 'Modelfile'}"]
        if template is not None and scaffold is None:
            notes.append("its chat template does more than Ollama's can; Ollama looks for one by its text")
        elif template is not None and "tools" in template.all_text:
            notes.append("what its chat template writes of tools is not in the Modelfile")
        return self._exported(path, made.n_bytes + len(text.encode()), made.proof, made.loss, made.llama_cpp,
                              notes)  # fmt: skip

    def folder_of(self, temporary: Path, path: Path) -> Exported:
        """Write and prove a folder as the hub has them."""
        model, cast = self.loaded.model, FOLDER_DTYPES[self.dtype]
        if self.to == "sentence-transformers" and model.config.head == "classify":
            return self.scores_of(temporary, path)
        weights = {name: weight.to(cast) for name, weight in model.state_dict().items()}
        writes = isinstance(self.loaded, Generator) or hasattr(self.loaded, "translate")
        card = self.folder / "README.md"
        told = card.is_file() and not is_adapter(self.folder)  # of an adapter it is another folder's
        save_model(
            temporary, model, self.loaded.tokenizer, load_generation(self.folder) if writes else None,
            card.read_text("utf-8") if told else "", weights=weights,
            max_tokens=getattr(self.loaded, "max_tokens", None),
        )  # fmt: skip
        back: Any = load(temporary, type(self.loaded), dtype="float32", device="cpu")
        proof = self._proof(back, exact=True, weights=weights)
        loss = self._loss(back) if isinstance(back, Generator) else None
        size = sum(one.stat().st_size for one in temporary.rglob("*") if one.is_file())
        return self._exported(path, size, proof, loss, None, [])

    def scores_of(self, temporary: Path, path: Path) -> Exported:
        """Write and prove a folder whose vectors are the scores of a classifier's classes."""
        model, cast = self.loaded.model, FOLDER_DTYPES[self.dtype]
        weights = {name: weight.to(cast) for name, weight in model.state_dict().items()}
        head = {name: weight for name, weight in weights.items() if name.startswith("head.")}
        body = {name: weight for name, weight in weights.items() if name not in head}
        bare = empty_model(_without_classes(model.config), temporary)
        save_model(temporary, bare, self.loaded.tokenizer, card=CLASSES_CARD, weights=body)
        back: Any = load(temporary, dtype="float32", device="cpu")
        proof = self._proof(back, exact=True, weights=body)
        write_classes(temporary, model.config, head)
        kept = read_classes(temporary)
        if kept.keys() != head.keys() or any(not torch.equal(kept[name], head[name]) for name in head):
            raise Refused(f"{self.name} was not written: its classes are others when they are read back")
        size = sum(one.stat().st_size for one in temporary.rglob("*") if one.is_file())
        note = "a text's vector holds the scores of its classes, named by id2label in config.json"
        return self._exported(path, size, proof, None, None, [note])

    def _exported(
        self, path: Path, n_bytes: int, proof: str, loss: Loss | None, agreement: Agreement | None,
        notes: list[str],
    ) -> Exported:  # fmt: skip
        return Exported(self.name, self.to, self.dtype, path, n_bytes, proof, loss, agreement, tuple(notes))

    def _proof(self, back: Any, *, exact: bool, weights: Mapping[str, torch.Tensor] | None = None) -> str:
        """Compare tokens, and weights where none were packed; raises Refused where they differ."""
        ours, theirs = self.loaded.tokenizer.encode(PROBE), back.tokenizer.encode(PROBE)
        if ours != theirs or back.tokenizer.decode(theirs) != self.loaded.tokenizer.decode(ours):
            raise Refused(f"{self.name} was not written: a text has other tokens when it is read back")
        said = f"the same {len(ours)} tokens of a text with everything odd in it"
        if not exact:
            return said
        wanted = weights or self.loaded.model.state_dict()
        for name, weight in back.model.state_dict().items():
            if not torch.equal(weight, wanted[name].float()):
                raise Refused(f"{self.name} was not written: {name} is another one when it is read back")
        return f"{said}, the same weights"

    def _loss(self, back: Generator) -> Loss:
        found, name = self.text
        loss = Loss(*(score_text(one, found, model=self.name, test=name) for one in (self.loaded, back)))
        if not loss.difference.value <= BOUNDS[self.dtype]:
            raise Refused(
                f"{self.name} was not written: it loses {loss.difference.value:.3f} nats per token of {name} "
                f"as {self.dtype}, more than rounding does"
            )
        return loss

    def _prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Beginnings of passages of the text."""
        found = [one.text.strip() for one in self.text[0] if one.text.strip()]
        step = max(1, len(found) // PROMPTS)
        return [tokenizer.encode(text)[:PROMPT_TOKENS] for text in found[::step][:PROMPTS]]
