"""The process that tries schemas out: compiles one within limits and says whether it may be compiled again.

The one idea: a schema that would take all time or memory takes them here, where only this process ends.
Runs as a script of its own (transom.data.worker_process), and so imports nothing of ours. Read next:
structured.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

SECONDS = 2.0
"""Of CPU time, after which the kernel ends this process."""
EXTRA_MEMORY = 64 << 20


class Bytes:
    """A tokenizer of bytes, as llguidance wants one; what a schema costs hardly depends on the tokenizer."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def answer(question: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, Any]:
    """{grammar, limits} -> {} or {refused}."""
    limits = LLParserLimits(**question["limits"])
    matcher = LLMatcher(tokenizer, question["grammar"], limits=limits, log_level=0)
    if matcher.is_error():
        return {"refused": matcher.get_error()}
    matcher.compute_bitmask()
    if not matcher.is_error():
        return {}
    # Nothing is allowed even at the beginning.
    empty = matcher.get_error().startswith("NoExtension")
    return {
        "refused": "no text matches it; does a $ref lead back to itself?" if empty else matcher.get_error()
    }


def confine() -> None:
    """No more memory than there is now and EXTRA_MEMORY, no files, no core dumps."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + EXTRA_MEMORY, now + EXTRA_MEMORY))


def main() -> None:
    """Answer until nobody asks any more."""
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257, eos_token=[256])
    timed = hasattr(signal, "setitimer")
    confine()
    print("{}", flush=True)
    for line in sys.stdin.buffer:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # its signal ends the process
        reply = json.dumps(answer(json.loads(line), tokenizer))
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main()
