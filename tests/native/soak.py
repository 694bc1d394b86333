"""The kernels in use for so many seconds, from several threads, by two engines and an encoder in one process:
`python -m tests.native.soak SECONDS [FOLDER OF LIBRARIES]`. Every answer must be that which its request gets
alone. Prints how many there were.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

import torch

from transom.data.tokenizer import train_tokenizer
from transom.inference.embedder import Embedder
from transom.inference.generator import Generator
from transom.model.build import build
from transom.model.config import ModelConfig
from transom.native import library

PROMPTS = [bytes((7 * i + n * i * i) % 90 + 33 for i in range(n)).decode() for n in (1, 3, 17, 40, 90, 200)]
LETTERS = train_tokenizer("bytes", iter(["any text"]), 258)
TEXT = train_tokenizer("bytes", iter(["any text"]), 258, frame="text")
CLIENTS = 4


def generator(seed: int, **shape: object) -> Generator:
    """A small decoder of odd widths, as it comes."""
    config = ModelConfig(
        LETTERS.vocab_size, 48, 2, 4, 2, head_dim=12, ffn_dim=70, max_len=400, activation="silu", gated=True,
        norm="rms", norm_eps=1e-5, position="rotary", eos_id=None, **shape,
    )  # fmt: skip
    return Generator(build(config, seed).eval(), LETTERS)


def main(seconds: float) -> int:
    embedder = Embedder(
        build(
            ModelConfig(
                TEXT.vocab_size, 36, 2, 3, 3, head_dim=12, ffn_dim=50, max_len=256, kind="encoder",
                head="embed", pooling="mean",
            ),
            2,
        ).eval(),
        TEXT,
    )  # fmt: skip
    writers = [generator(0), generator(1, window=32)]
    for one in (*writers, embedder):
        assert "native kernels" in one.runs_by, one.runs_by
    wanted = {
        (place, prompt, seed): writer.generate(prompt, max_tokens=30, temperature=0.8, seed=seed).text
        for place, writer in enumerate(writers)
        for prompt in PROMPTS
        for seed in range(3)
    }
    vectors = {prompt: embedder.embed([prompt])[0] for prompt in PROMPTS}
    ends, wrong, done = time.monotonic() + seconds, list[str](), [0, 0, 0]
    count = threading.Lock()

    def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < ends and not wrong:
            place, prompt, seed = draw.randrange(3), draw.choice(PROMPTS), draw.randrange(3)
            if place == 2:
                some = draw.sample(PROMPTS, draw.randrange(1, len(PROMPTS)))
                right = all(
                    (found == vectors[text]).all()
                    for text, found in zip(some, embedder.embed(some), strict=True)
                )
            else:
                stream = writers[place].stream(prompt, max_tokens=30, temperature=0.8, seed=seed)
                expected, most = wanted[place, prompt, seed], draw.choice((2, 30, 30))
                text = "".join(piece for piece, _ in zip(stream, range(most), strict=False))
                stream.close()  # some go before the end
                right = expected.startswith(text) and (most < 30 or text == expected)
            if not right:
                wrong.append(f"{('decoder', 'window', 'encoder')[place]}, {prompt!r}, seed {seed}")
            with count:
                done[place] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    print(f"{done[0]:,} and {done[1]:,} texts, {done[2]:,} times vectors, {len(wrong)} wrong", *wrong)
    return int(bool(wrong) or not all(done))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        library.HOME = Path(sys.argv[2])
    torch.set_num_threads(2)
    sys.exit(main(float(sys.argv[1])))
