"""What an operator decides: where to listen, who may ask, and every limit, each with its flag.

The limits are those of the field's hard lessons: what a client can make large is bounded before any work is
done, here in the numbers and once more in the engine. Read next: server/app, server/guard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .settings import Count, Flag, Names, Settings, Size, Time

Bytes = Annotated[Count, Field(ge=1)]


class LimitSettings(Settings):
    """The most that a client can ask for; more is refused with the number and the name of the field."""

    body: Bytes = 4_000_000
    """Bytes of a request."""
    json_depth: Size = 64
    """Brackets within brackets in a request."""
    json_values: Size = 200_000
    """Values of a request: texts, numbers, lists and objects together."""
    json_names: Size = 1000
    """Names of one object in a request."""
    messages: Size = 1000
    """Messages of a chat."""
    parts: Size = 1000
    """Parts of one message."""
    prompts: Size = 32
    """Prompts of one completion request, and texts to translate."""
    texts: Size = 1024
    """Texts of one request to embed or classify."""
    n: Size = 8
    """Answers to one prompt."""
    logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    """Likeliest alternatives shown for a token."""
    logit_bias: Size = 300
    """Tokens with a bias."""
    stop: Annotated[int, Field(ge=1, le=15)] = 4
    """Stop strings, of 256 bytes each."""
    schema_bytes: Bytes = 64_000
    """Bytes of a JSON schema for the answer."""
    tools: Size = 128
    """Tools of one request, and calls in one message."""
    beam: Annotated[int, Field(ge=1, le=64)] = 16
    """Beams of one translation."""
    header_bytes: Bytes = 16_384
    """Bytes of all header lines."""
    header_lines: Size = 64
    """Header lines."""
    connections: Size = 256
    """Open connections; above it the answer is 429, and above four times as many there is none."""
    connections_per_ip: Size = 32
    """Open connections from one address, loopback excepted (a proxy on this machine is one address)."""
    look_tokens: Size = 2048
    """Tokens of an answer that is looked into, prompt and answer together."""
    looks: Size = 8
    """Looks of one API key that wait for their turn, one model at a time; above it the answer is 429."""
    queue: Size = 64
    """Requests of one API key that wait for their turn; above it the answer is 429 with Retry-After."""
    queue_tokens: Count = 16_000_000
    """Tokens that those of one API key that wait may come to hold, prompts and answers together."""


class DeadlineSettings(Settings):
    """How long a client may take; a connection that does not keep up is closed."""

    header: Time = 10.0
    """From the first byte, or the opening of a connection, to the end of the header."""
    body: Time = 30.0
    """From the end of the header to the end of the body."""
    idle: Time = 15.0
    """Between two requests on one connection."""
    reader: Time = 30.0
    """A client that reads nothing while there is something to send."""
    request: Time = 300.0
    """From the request to the end of the answer."""
    grace: Time = 25.0
    """After SIGTERM, for the answers that are being written."""


class ServerSettings(Settings):
    """How `transom serve` runs."""

    host: str = "127.0.0.1"
    """Where to listen; anything but this machine's own address needs a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one and prints it."""
    allow_host: Annotated[tuple[str, ...], Names] = ()
    """Another name by which clients may call this server, whatever the scheme and port, and so may its pages;
    repeat for several."""
    allow_origin: Annotated[tuple[str, ...], Names] = ()
    """A site whose pages may ask this server (CORS), such as `https://notes.example`; repeat for several."""
    api_key_file: Path | None = None
    """A file with one key per line (or set TRANSOM_API_KEY): every request then needs one of them. Behind a
    key may stand labels (`KEY hr,board`): of a knowledge base it sees documents without a label, and those
    that have one of its own."""
    generate_key: Flag = False
    """Make a key and print it once."""
    i_know_this_is_public: Flag = False
    """Listen beyond this machine without a key."""
    adapter: Annotated[tuple[str, ...], Names] = ()
    """NAME=FOLDER: an adapter (LoRA) over the model that is served, which clients call MODEL:NAME; repeat for
    several, which then work in one batch; over one of several models, MODEL:NAME=FOLDER."""
    index: Annotated[tuple[str, ...], Names] = ()
    """A knowledge base (transom index) to answer from, FOLDER or NAME=FOLDER, or the address of one in
    PostgreSQL; repeat for several."""
    reranker: str | None = None
    """A model that reads the best passages beside the question and puts them in its order, as for transom
    ask: a folder or a Hugging Face id."""
    chat_template: str | None = None
    """`plain`, `chatml` or a file, for models whose folder has none that can be read."""
    memory: Path | None = None
    """The file of what the page remembers [default: this user's own, where only this machine can reach the
    server; else none]; with API keys each has one of its own beside it, without them it opens to the page
    whose address is printed at the start, and to nobody else."""
    no_memory: Flag = False
    """Remember nothing."""
    lenient: Flag = False
    """Ignore fields that do not exist, naming them in a header of the answer, rather than refuse them."""
    deterministic: Flag = False
    """Let no answer depend on what runs beside it, to the last bit; slower."""
    max_rows: Size = 64
    """Sequences that are decoded together."""
    cache_tokens: Count | None = None
    """Tokens that the cache of keys and values holds, over all requests [default: as 1 GiB holds]."""
    draft: Annotated[int, Field(ge=0, le=16)] = 0
    """Tokens guessed ahead from repetitions of the text (n-gram speculative decoding); the answers stay the
    same."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights [default: as the folder says, and as is fast here]."""
    weights: Literal["int8", "bfloat16"] | None = None
    """`int8`: multiply in 8 bits on a CPU, faster and a little less exact; `bfloat16`: read 16 bits of each
    weight there [default: as the weights are]."""
    device: str | None = None
    """`cpu`, `cuda`, `mps` [default: the fastest]."""
    limits: LimitSettings = LimitSettings()
    deadlines: DeadlineSettings = DeadlineSettings()

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1") or self.host.startswith("127.")
