"""Transom's models under EleutherAI's lm-evaluation-harness: `--model transom` (extra: transom[lm-eval]).

    python -m transom.evaluation.harness run --model transom --model_args pretrained=runs/notes --tasks ...

does what `lm-eval` does; from the release that looks for entry points on, `lm-eval run --model transom` does
too. Scores are those of its `hf` backend: the same tokens, windows and stops; text that spells a control
token is ordinary text here, though. Read next: likelihood.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..errors import Refused
from ..inference.generator import Generator
from .likelihood import Row, likelihoods

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise Refused("lm-evaluation-harness is not installed: pip install 'transom[lm-eval]'") from None

ANSWER_TOKENS = 256
"""Most tokens of an answer where a task does not say, as in its other backends."""
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty")
"""Settings of a task that our sampler knows."""


@register_model("transom")
class TransomLM(TemplateLM):
    """A generator, asked as lm-eval asks."""

    def __init__(
        self,
        pretrained: str,
        dtype: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        """pretrained: a run's folder, a model folder or a hub id. dtype, device: as for `transom.load`.

        max_length: most tokens that are read at once. Batches are made here by tokens, so what lm-eval says
        of their size changes nothing. Raises Refused.
        """
        from ..inference.load import load

        super().__init__()
        self.loaded = load(pretrained, Generator, dtype=dtype, device=device)
        self.name, self.max_length = pretrained, int(max_length or self.loaded.model.config.max_len)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises Refused where the tokenizer names none."""
        number = self.loaded.tokenizer.eos_id
        if number is None:
            raise Refused(f"{self.name}: its tokenizer names no end-of-text token (eos_token)")
        return number

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that begins with nothing: as in `hf`, the begin token, else the end."""
        begin = self.loaded.tokenizer.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What answers are kept under."""
        return self.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, after what the folder puts before every text unless that is not wanted."""
        before = () if add_special_tokens is False else self.loaded.tokenizer.frame[0]
        return [*before, *self.loaded.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """log p of each continuation after its context, and whether it is what greedy writing would say."""
        most = self.max_length + 1
        whole = [[*context, *continuation][-most:] for _asked, context, continuation in requests]
        rows = [
            Row(tokens, min(len(continuation), len(tokens) - 1))
            for tokens, (*_asked, continuation) in zip(whole, requests, strict=True)
        ]
        found = [(-one.nats, bool(one.likeliest.all())) for one in likelihoods(self.loaded.model, rows)]
        for (asked, *_tokens), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of `max_length` that share no token that is judged."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length, context_len=1,
            ):  # fmt: skip
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What is written after each context up to a stop string; contexts that want the same, together."""
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(number)
        for numbers in groups.values():
            wanted: dict[str, Any] = dict(normalize_gen_kwargs(requests[numbers[0]].args[1], ANSWER_TOKENS))
            until, most = [one for one in wanted.pop("until", ()) if one], wanted.pop("max_gen_toks")
            if self.max_length <= most:
                raise Refused(f"{most} tokens are to be written, and {self.name} reads {self.max_length}; "
                              "set a smaller max_gen_toks (--gen_kwargs)")  # fmt: skip
            contexts = [
                self.tok_encode(requests[number].args[0])[most - self.max_length :] for number in numbers
            ]
            settings = {name: wanted[name] for name in SAMPLED if name in wanted}
            settings["temperature"] = wanted.get("temperature", 0.0) if wanted.get("do_sample") else 0.0
            found = self.loaded.generate(contexts, max_tokens=most, stop=until, **settings)
            texts |= {number: one.text for number, one in zip(numbers, found, strict=True)}
            for number in numbers:
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Refuse: a conversation becomes tokens here and no text in which control could be forged."""
        raise Refused("--apply_chat_template is not for this backend: its templates write tokens and no text")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
