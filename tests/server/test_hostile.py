"""One client that means harm: what it sends costs the others neither time nor memory nor their turn."""

from __future__ import annotations

import gc
import itertools
import json
import re
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.server.conftest import Running, serving
from tests.server.test_drain import process
from tests.server.test_limits import INSIDE, checked
from tests.server.test_load import PROBE
from transom.inference.generator import Generator
from transom.server.app import POSTS
from transom.server.body import LARGE, n_values
from transom.server.endpoint import PIECE, pieces, to_json
from transom.server.errors import ApiError
from transom.server.memory import FactBody, RecallBody, SwitchBody
from transom.server.output_parser import OutputParser, parsed
from transom.server.tool_calls import HERMES, LLAMA, MISTRAL
from transom.server_settings import LimitSettings

pytestmark = pytest.mark.alone

BODIES = {path: body for path, (body, *_) in POSTS.items()} | {
    "/memory": FactBody, "/memory/recall": RecallBody, "/memory/switch": SwitchBody,
}  # fmt: skip
Maker = Callable[[list[Any]], Any]
"""From a flood of items to a value that is fine but for them."""


def lists(schema: dict[str, Any], parts: dict[str, Any], where: str = "") -> Iterator[tuple[str, Maker]]:
    """Every place of a JSON schema where there may be a list: its name, and what puts one there."""
    schema = parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from lists(one, parts, where)
    if schema.get("type") == "array":
        yield where, lambda flood: flood
        for name, make in lists(schema.get("items", {}), parts, f"{where}[]"):
            yield name, lambda flood, make=make: [make(flood)]
    for field, inner in schema.get("properties", {}).items():
        for name, make in lists(inner, parts, f"{where}.{field}"):
            yield name, lambda flood, make=make, field=field: {**least(schema, parts), field: make(flood)}


def least(schema: dict[str, Any], parts: dict[str, Any]) -> Any:
    """A small value that a schema allows."""
    schema = parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return least(schema[several][0], parts)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kinds: dict[str, Callable[[], Any]] = {
        "string": lambda: "x", "integer": lambda: 1, "number": lambda: 0.0, "boolean": lambda: True,
        "array": lambda: [least(schema["items"], parts)],
        "object": lambda: {name: least(schema["properties"][name], parts) for name in needed(schema)},
    }  # fmt: skip
    return kinds[schema["type"]]()


def needed(schema: dict[str, Any]) -> list[str]:
    """What an object must have, and what tells its kind."""
    told = [name for name, inner in schema.get("properties", {}).items() if "const" in inner]
    return [*schema.get("required", ()), *told]


def places() -> Iterator[tuple[str, str, Maker]]:
    for path, body in BODIES.items():
        schema = body.model_json_schema()
        found = dict(lists(schema, schema.get("$defs", {})))
        for name, make in found.items():
            yield path, name, make


PLACES = list(places())
FLOODS: dict[str, Any] = {"fractions": 1.5, "objects": {}, "lists": [], "texts": "x", "names": {"x": 1}}


def test_the_lists_of_all_routes_are_found():
    found = {(path, name) for path, name, _ in PLACES}
    for one in (
        ("/v1/chat/completions", ".messages"), ("/v1/chat/completions", ".messages[].content"),
        ("/v1/chat/completions", ".messages[].tool_calls"), ("/v1/chat/completions", ".tools"),
        ("/v1/chat/completions", ".stop"), ("/v1/chat/completions", ".prefix_tokens"),
        ("/v1/responses", ".input"), ("/v1/responses", ".input[].content"), ("/v1/responses", ".include"),
        ("/v1/completions", ".prompt"), ("/v1/completions", ".prompt[]"), ("/v1/embeddings", ".input"),
        ("/translate", ".text"), ("/classify", ".text"), ("/tokenize", ".messages"),
        ("/look", ".answer"), ("/look", ".logprobs"), ("/look", ".prompt"), ("/look", ".messages[].content"),
    ):  # fmt: skip
        assert one in found, one


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize(("path", "name", "make"), PLACES, ids=[f"{path} {name}" for path, name, _ in PLACES])
def test_the_first_bad_item_of_a_list_ends_the_look(path: str, name: str, make: Maker, flood: str):
    """So that the complaints do not grow with the list; it may also be refused for its length alone."""
    try:
        BODIES[path].model_validate(make([FLOODS[flood]] * 5000), context=LimitSettings())
    except ValidationError as error:
        assert error.error_count() < 32
    except ApiError as error:
        assert error.status == 400 and ("limit is" in error.message or "token ids" in error.message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a,["{\\]}', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text('b,["{\\', max_size=4), inner, max_size=6)
    ),
    max_leaves=40,
)  # fmt: skip


@given(JSON)
def test_values_are_counted_outside_of_texts(value: Any):
    def count(one: Any) -> int:
        if not isinstance(one, list | dict):
            return 0
        inner = one.values() if isinstance(one, dict) else one
        return max(1, len(one)) + sum(map(count, inner))

    value = ["," * LARGE, value]  # so many that it looks closer
    assert n_values(json.dumps(value).encode()) == 1 + count(value)


def test_a_flood_is_told_before_it_is_parsed(http: httpx.Client):
    for body in (b'{"x":[' + b"[]," * 1_000_000 + b"0]}", b'{"x":[' + b'{"":0},' * 500_000 + b"0]}"):
        error = checked(http.post("/v1/completions", content=body, headers=AS_JSON), 400)
        assert "values; the limit is 200,000 (--limits.json-values)" in error["message"]
    wide = json.dumps({f"x{at}": 1 for at in range(5000)})
    error = checked(http.post("/v1/completions", content=wide, headers=AS_JSON), 400)
    assert "5,000 names; the limit is 1,000 (--limits.json-names)" in error["message"]
    commas = json.dumps({"model": "plain", "text": "a, b, [c] " * 100_000})
    assert http.post("/tokenize", content=commas, headers=AS_JSON).status_code == 200


AS_JSON = {"content-type": "application/json"}


@given(JSON, st.integers(0, 3))
def test_a_large_answer_in_pieces_is_the_same_answer(value: Any, n: int):
    value = {"data": [value, {"inner": [value] * (n * PIECE), "numbers": list(range(n * PIECE + 1))}]}
    assert b"".join(pieces(value)) == to_json(value)


def test_no_piece_of_an_answer_is_large():
    vectors = {"data": [{"embedding": [0.1234567 + at] * 3000} for at in range(20)]}
    assert max(map(len, pieces(vectors))) < 20 * PIECE


@pytest.mark.parametrize(
    "text", [" " * 300_000, "<tool_call>" * 30_000, "<tool_call></tool_call> " * 20_000,
             "[TOOL_CALLS]" * 30_000, "<think>" * 30_000, "{" * 200_000, '{"name": ' * 20_000]
)  # fmt: skip
@pytest.mark.parametrize("syntax", [HERMES, MISTRAL, LLAMA])
def test_taking_an_answer_apart_is_linear_in_it(text: str, syntax: Any):
    began = time.perf_counter()
    parsed(OutputParser(syntax=syntax, names=["f"], thinks=True), text)
    assert time.perf_counter() - began < 2


def memory_of(process: subprocess.Popen[str], field: str = "VmRSS") -> float:
    """Resident megabytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def floods(size: int) -> Iterator[tuple[str, bytes]]:
    """Bodies of about so many bytes: every list of every route, filled with this and that."""
    for (path, _, make), item in itertools.product(PLACES, FLOODS.values()):
        if path != "/memory/switch":
            yield path, json.dumps(make([item] * (size // (2 + len(json.dumps(item)))))).encode()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see another's memory")
def test_no_list_of_any_route_stops_the_others(folders: dict[str, Path]):
    """4 MB in every list field, and a million bytes, which is few enough values to be looked at."""
    names = [str(folders[name]) for name in ("crow", "moses", "sorter", "vector")]
    with process(*names) as (server, url, _), httpx.Client(base_url=url, timeout=60) as client:
        for path, body in itertools.islice(floods(1000), 0, None, 40):
            client.post(path, content=body, headers=AS_JSON)
        before = memory_of(server)
        probe = subprocess.Popen([sys.executable, "-c", PROBE, url.removeprefix("http://")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        codes = set()
        for size in (3_900_000, 390_000):
            codes |= {
                client.post(path, content=body, headers=AS_JSON).status_code for path, body in floods(size)
            }
        times = sorted(json.loads(probe.communicate("over")[0]))
        after = memory_of(server, "VmHWM")
    assert codes <= {200, 400, 404} and 400 in codes
    p99 = times[int(0.99 * (len(times) - 1))]
    print(f"/health p99 {1e3 * p99:.0f} ms of {len(times):,}, memory {after - before:+.0f} MB")
    assert p99 < 0.2, times[-10:]
    assert after - before < 200, f"{before:.0f} MB before, {after:.0f} MB at most"


def test_a_body_in_crumbs_is_refused(server: Running):
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    body = b'{"model":"crow","prompt":"x","max_tokens":2,"temperature":0}'
    crumbs = b"".join(b"1\r\n%c\r\n" % sign for sign in body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        for _ in range(2):  # each body is counted by itself
            wire.sendall(head + b"1\r\n \r\n" * 900 + crumbs + b"0\r\n\r\n")
            told = b""
            while not told.endswith(b"}}"):
                told += wire.recv(4096)
            assert told.startswith(b"HTTP/1.1 200")
        wire.sendall(head + b"1\r\n \r\n" * 1_100)
        assert b"more than 1,000 pieces of less than 64 bytes" in answer(wire)


# What one key has waiting


KEYS = ("sk-transom-greedy-000000", "sk-transom-modest-000000")


def test_a_full_queue_of_one_key_keeps_no_other_out(folders: dict[str, Path]):
    """The queue of one is full; another's request has its row within a few tokens, long before any ends."""
    long = {"prompt": "The crow", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with serving(folders, "crow", keys=KEYS, max_rows=2, **{"limits.queue": 4}) as server:
        greedy, modest = (server.client(headers={"authorization": f"Bearer {key}"}) for key in KEYS)
        with greedy, modest:
            model = server.app.state.models["crow"]
            wires = [begin(server, long, KEYS[0]) for _ in range(2)]
            wait_for(model, "running", 2)
            wires += [begin(server, long, KEYS[0]) for _ in range(4)]
            wait_for(model, "queued", 4)
            assert greedy.post("/v1/completions", json=long).status_code == 429
            told = modest.post("/v1/completions", json={**long, "max_tokens": 8})
            assert told.status_code == 200 and model.worker.in_flight >= 5
            quiet = model.model.generate("The crow", max_tokens=200, temperature=0, ignore_eos=True).text
            for wire in wires:
                assert quiet in json.loads(answer(wire))["choices"][0]["text"]


def wait_for(model: Any, figure: str, value: int) -> None:
    end = time.monotonic() + 20
    while model.worker.figures[figure] != value:
        assert time.monotonic() < end, model.worker.figures
        time.sleep(0.002)


def begin(server: Running, body: dict[str, Any], key: str) -> socket.socket:
    data = json.dumps(body).encode()
    wire = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Connection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n")  # fmt: skip
    wire.sendall(head.encode() + data)
    return wire


def answer(wire: socket.socket) -> bytes:
    with wire:
        return b"".join(iter(lambda: wire.recv(65536), b"")).partition(b"\r\n\r\n")[2]


# What is told


@pytest.mark.parametrize("given", [True, False])
def test_a_template_that_turns_a_talk_down_tells_no_path(
    folders: dict[str, Path], tmp_path: Path, given: bool
):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    for file in folders["plain"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = (tmp_path if given else folder) / "chat_template.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    more = {"chat_template": str(template)} if given else {}
    with serving({"run": folder}, "run", **more) as server, server.client() as client:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        error = checked(client.post("/v1/chat/completions", json=body), 400)
        assert "roles must alternate" in error["message"] and str(tmp_path) not in error["message"]
        assert not INSIDE.search(error["message"])


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 20, "-1", "x", "1.5", "²"])
def test_the_number_of_a_fact_is_a_number(http: httpx.Client, number: str):
    checked(http.delete(f"/memory/{number}"), 404)
    checked(http.patch(f"/memory/{number}", json={"text": "x"}), 404)


def test_a_client_that_leaves_is_no_fault_of_the_server(folders: dict[str, Path]):
    long = {"prompt": "The crow", "max_tokens": 240, "temperature": 0, "ignore_eos": True}
    with serving(folders, "crow") as server, server.client() as client:
        wires = [begin(server, long, "") for _ in range(3)]
        while server.app.state.models["crow"].worker.in_flight < 3:
            time.sleep(0.005)
        for wire in wires:
            wire.close()
        counted = ""
        for _ in range(500):
            counted = client.get("/metrics").text
            if 'route="/v1/completions",status="499"} 3.0' in counted:
                break
            time.sleep(0.01)
        assert 'route="/v1/completions",status="499"} 3.0' in counted and 'status="500"' not in counted


@pytest.mark.parametrize("frozen", [False, True])
def test_a_broken_engine_is_gone_before_there_is_another(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, frozen: bool
):
    """So that two caches are never held at once."""
    real, made, left = Generator.engine, list[Any](), list[Any]()

    def engine(self: Generator, *given: Any, **more: Any) -> Any:
        left.append([one() for one in made if one() is not None])
        one = real(self, *given, **more)
        if not made:
            step = type(one).step

            def breaking() -> Any:
                step(one)
                raise MemoryError

            one.step = breaking  # type: ignore[method-assign]
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(Generator, "engine", engine)
    gc.disable()
    try:
        with serving(folders, "crow") as server, server.client() as client:
            if frozen:  # as `transom serve` does
                gc.freeze()
            assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 9}).status_code == 503
            while client.get("/health").status_code != 200:
                time.sleep(0.01)
            assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
    finally:
        gc.unfreeze()
        gc.enable()
    assert left == [[], []]
