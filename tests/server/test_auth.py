"""Who may ask: deny by default on every route there is, and no way around it by spelling."""

from __future__ import annotations

import http.client
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Running, serving
from transom.errors import Refused
from transom.server.keys import Keys, read_keys
from transom.server_settings import ServerSettings
from transom.settings import load as load_settings

ANN, BOB = "sk-transom-ann-0123456789", "sk-transom-bob-0123456789"
OPEN = {"/health", "/"}


@pytest.fixture(scope="module")
def locked(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    memory = tmp_path_factory.mktemp("locked") / "memory.sqlite"
    with serving(folders, "crow", keys=(ANN, BOB), memory=memory, allow_host=("models.example",)) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def raw(
    server: Running, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> int:
    """The status of a request whose target is sent as it stands."""
    wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        wire.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}.items():
            wire.putheader(name, value)
        wire.endheaders(body)
        return wire.getresponse().status
    finally:
        wire.close()


def routes(server: Running) -> list[tuple[str, str]]:
    """Every route with each of its methods, as the router itself has them."""
    return [
        (method, route.path.replace("{id:int}", "1").replace("{name:path}", "crow"))  # type: ignore[attr-defined]
        for route in server.app.router.routes
        for method in sorted(route.methods)  # type: ignore[attr-defined]
    ]


def test_every_route_wants_a_key(locked: Running):
    found = routes(locked)
    assert len(found) > 25 and {path for _, path in found} >= {
        "/metrics",
        "/v1/models",
        "/memory",
        "/openapi.json",
    }
    headers = {"content-type": "application/json"}
    for method, path in found:
        status = raw(locked, method, path, headers, b"{}" if method not in ("GET", "HEAD") else b"")
        if path in OPEN or path.startswith("/page/"):
            assert status == 200, (method, path)
        else:
            assert status == 401, (method, path)


@pytest.mark.parametrize("key", ["", "wrong", ANN[:-1], ANN + "x", ANN.upper(), f" {ANN}x", "é" * 20])
def test_a_wrong_key_opens_nothing(locked: Running, key: str):
    assert (
        raw(locked, "GET", "/v1/models", {"Authorization": f"Bearer {key}".encode().decode("latin-1")}) == 401
    )
    assert (
        raw(locked, "GET", "/v1/models", {"Authorization": f"Basic {key}".encode().decode("latin-1")}) == 401
    )


@pytest.mark.parametrize("key", [ANN, BOB])
def test_each_key_opens(locked: Running, key: str):
    assert raw(locked, "GET", "/v1/models", bearer(key)) == 200
    assert raw(locked, "GET", "/v1/models", {"Authorization": f"bearer  {key}"}) == 200


TRICKS = [
    "//v1/models",
    "/v1//models",
    "/v1/../v1/models",
    "/health/../v1/models",
    "/health/..;/v1/models",
    "/%76%31/models",
    "/v1/models/",
    "/v1/models%2f",
    "/v1/models;x",
    "/V1/MODELS",
    "/health%2f..%2fv1%2fmodels",
    "/page/../v1/models",
    "/page/%2e%2e/v1/models",
    "/./v1/models",
    "/health/",
    "/health%00",
    "/?/v1/models#",
    "/v1/models?x=/health",
    "http://localhost/v1/models",
    "/health?/../v1/models",
    "/metrics?x",
    "/v1/models%3f/health",
    "/\\v1\\models",
]


@pytest.mark.parametrize("target", TRICKS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "get"])
def test_no_spelling_of_a_path_gets_in(locked: Running, method: str, target: str):
    status = raw(locked, method, target)
    harmless = target.split("?")[0] in ("/", "/health")
    assert status in ((200, 403, 405, 415) if harmless else (400, 401, 403, 404, 405))


@pytest.mark.parametrize(
    "method", ["X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host"]
)
def test_headers_that_proxies_know_change_nothing(locked: Running, method: str):
    assert raw(locked, "GET", "/v1/models", {method: "/health"}) == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "localhost.evil.test",
        "evil.test/health",
        "localhost/health?",
        "localhost@evil.test",
        "",
        "a:b",
        "x/docs?",
        "127.0.0.1.evil.test",
        "localhost:80x",
        "[::1",
        "localhost evil",
    ],
)
def test_a_forged_host_is_turned_away(locked: Running, host: str):
    for path in ("/health", "/v1/models", "/"):
        assert raw(locked, "GET", path, {"Host": host, **bearer(ANN)}) in (400, 421)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "models.example", "localhost."]
)
def test_own_names_are_let_in(locked: Running, host: str):
    assert raw(locked, "GET", "/health", {"Host": host}) == 200


def test_two_hosts_are_none(locked: Running):
    wire = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=10)
    wire.putrequest("GET", "/health", skip_host=True)
    wire.putheader("Host", "localhost")
    wire.putheader("Host", "evil.test")
    wire.endheaders()
    assert wire.getresponse().status == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "https://localhost.evil.test", "file://", "http://localhost:1"]
)
def test_pages_of_others_change_nothing(locked: Running, origin: str):
    body = json.dumps({"model": "crow", "prompt": "x", "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json", "Origin": origin, **bearer(ANN)}
    assert raw(locked, "POST", "/v1/completions", headers, body) == 403
    assert raw(locked, "DELETE", "/memory", headers) == 403


def test_the_own_page_may(locked: Running):
    own = f"127.0.0.1:{locked.port}"
    headers = {"Content-Type": "application/json", "Host": own, "Origin": f"http://{own}", **bearer(ANN)}
    body = json.dumps({"model": "crow", "prompt": "x", "max_tokens": 1}).encode()
    assert raw(locked, "POST", "/v1/completions", headers, body) == 200


def test_nothing_is_offered_to_other_sites(locked: Running):
    with locked.client(headers={**bearer(ANN), "origin": "http://evil.test"}) as client:
        for response in (client.get("/v1/models"), client.options("/v1/models"), client.get("/")):
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.fixture(scope="module")
def behind(folders: dict[str, Path]) -> Iterator[Running]:
    """A server behind a proxy, called ex.org, that pages of another site may ask."""
    named = {"allow_host": ("ex.org",), "allow_origin": ("https://notes.example", "http://localhost:3000")}
    with serving(folders, "crow", keys=(ANN,), **named) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("ex.org", "https://ex.org:8443", 200),
        ("127.0.0.1:PORT", "https://ex.org", 200),
        ("ex.org:443", "https://ex.org", 200),
        ("EX.org", "https://ex.org", 200),
        ("ex.org", "https://EX.org", 200),
        ("127.0.0.1:PORT", "https://notes.example", 200),
        ("127.0.0.1:PORT", "http://localhost:3000", 200),
        ("127.0.0.1:PORT", "http://localhost:3001", 403),
        ("127.0.0.1:PORT", "http://notes.example", 403),
        ("127.0.0.1:PORT", "https://notes.example.evil.test", 403),
        ("127.0.0.1:PORT", "https://ex.org.evil.test", 403),
        ("ex.org", "https://evil.test", 403),
        ("127.0.0.1:PORT", "null", 403),
        ("127.0.0.1:PORT", "file://ex.org", 403),
    ],
)
def test_pages_of_named_sites_may_ask(behind: Running, host: str, origin: str, status: int):
    headers = {"Content-Type": "application/json", "Origin": origin, **bearer(ANN)}
    headers["Host"] = host.replace("PORT", str(behind.port))
    body = json.dumps({"model": "crow", "prompt": "x", "max_tokens": 1}).encode()
    assert raw(behind, "POST", "/v1/completions", headers, body) == status


def test_a_page_is_told_which_setting_lets_it_in(behind: Running):
    with behind.client(headers={**bearer(ANN), "origin": "https://evil.test"}) as client:
        told = client.post("/v1/completions", json={"prompt": "x"}).json()["error"]
    assert told["code"] == "origin_not_allowed"
    for part in ("https://evil.test", f"127.0.0.1:{behind.port}", "--allow-origin", "--allow-host"):
        assert part in told["message"]


def test_the_browser_of_a_named_site_is_told_so(behind: Running):
    site = {"origin": "https://notes.example"}
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    with behind.client() as client:
        ahead = client.options("/v1/chat/completions", headers={**site, **asks})
        assert ahead.status_code == 204 and ahead.headers["access-control-allow-origin"] == site["origin"]
        assert ahead.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "POST" in ahead.headers["access-control-allow-methods"]
        told = client.get("/v1/models", headers={**site, **bearer(ANN)})
        assert (
            told.headers["access-control-allow-origin"] == site["origin"] and told.headers["vary"] == "Origin"
        )
        assert "access-control-allow-credentials" not in told.headers
        locked_out = client.get("/v1/models", headers=site)  # a page may read why
        assert locked_out.status_code == 401 and "access-control-allow-origin" in locked_out.headers
        evil = client.options("/v1/chat/completions", headers={**asks, "origin": "https://evil.test"})
        assert not [name for name in evil.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "notes.example", "file://x", "https://", "https://a b"])
def test_an_origin_that_is_none_is_refused(folders: dict[str, Path], origin: str):
    with pytest.raises(Refused, match="--allow-origin"), serving(folders, "crow", allow_origin=(origin,)):
        pass


def test_the_page_comes_with_its_policy(locked: Running):
    with locked.client() as client:
        headers = client.get("/").headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_ranges_are_not_a_thing(locked: Running):
    with locked.client() as client:
        whole = client.get("/")
        part = client.get("/", headers={"range": "bytes=" + ",".join(f"{at}-" for at in range(500))})
    assert part.status_code == 200 and part.content == whole.content


def test_each_key_has_a_memory_of_its_own(locked: Running):
    with locked.client() as client:
        client.post("/memory", json={"text": "ann likes cheese"}, headers=bearer(ANN))
        assert [fact["text"] for fact in client.get("/memory", headers=bearer(ANN)).json()["facts"]] == [
            "ann likes cheese"
        ]
        assert client.get("/memory", headers=bearer(BOB)).json()["facts"] == []


def test_prefixes_are_not_shared_between_keys(locked: Running):
    """What one key's prompts leave in the cache is invisible to another, by its time too."""
    worker = locked.app.state.models["crow"].worker
    body = {"model": "crow", "prompt": [71] * 200, "max_tokens": 1}

    def hits(key: str) -> float:
        before = worker.figures.get("prefix_hits", 0)
        with locked.client() as client:
            assert client.post("/v1/completions", json=body, headers=bearer(key)).status_code == 200
        return worker.figures["prefix_hits"] - before

    assert hits(ANN) == 0
    assert hits(BOB) == 0
    assert hits(ANN) > 100


def test_keys_and_prompts_are_in_no_log(locked: Running, caplog: pytest.LogCaptureFixture):
    secret = "the launch code is 4711"
    with caplog.at_level(logging.DEBUG), locked.client(headers=bearer(ANN)) as client:
        client.post("/v1/completions", json={"model": "crow", "prompt": secret, "max_tokens": 2})
        client.post("/v1/completions", json={"model": "crow", "prompt": secret, "stop": 5})
        client.post("/v1/completions", json={"model": secret, "prompt": secret})
        client.get("/v1/models", headers={"authorization": "Bearer " + secret})
    own = [
        record
        for record in caplog.records
        if record.name.split(".")[0] in ("transom", "uvicorn", "starlette")
    ]
    assert not [record for record in own if secret in record.getMessage() or ANN in record.getMessage()]


# Where keys come from


def settings(**given: object) -> ServerSettings:
    return load_settings(ServerSettings, given)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_this_machine_needs_no_key(host: str):
    assert not read_keys(settings(host=host), {})[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "models.example"])
def test_others_do(host: str, tmp_path: Path):
    with pytest.raises(Refused, match="lets other machines in"):
        read_keys(settings(host=host), {})
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{ANN}\n\n{BOB}\n")
    for given, environment in [
        ({"generate_key": True}, {}),
        ({}, {"TRANSOM_API_KEY": ANN}),
        ({"api_key_file": file}, {}),
    ]:
        assert read_keys(settings(host=host, **given), environment)[0]
    assert not read_keys(settings(host=host, i_know_this_is_public=True), {})[0]


def test_a_made_key_is_told_once_and_opens():
    keys, made = read_keys(settings(generate_key=True), {})
    again, other = read_keys(settings(generate_key=True), {})
    assert made != other and keys.tenant(made.encode()) and keys.tenant(other.encode()) is None
    assert made not in repr(vars(keys))


def test_scopes_tell_keys_apart_and_say_nothing_of_them():
    keys = Keys((ANN, BOB))
    ann, bob = keys.tenant(ANN.encode()), keys.tenant(BOB.encode())
    assert ann and bob and ann != bob and ann not in ANN
    assert keys.tenant(None) is None and keys.tenant(b"") is None
    assert Keys().tenant(None) == "" == Keys().tenant(b"anything")


@pytest.mark.parametrize("content", ["", "# only this\n", "short\n", "with a space in the key\n"])
def test_a_file_without_proper_keys_is_refused(tmp_path: Path, content: str):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(Refused):
        read_keys(settings(api_key_file=file), {})
    with pytest.raises(Refused):
        read_keys(settings(api_key_file=tmp_path / "none"), {})


def test_the_memory_is_readable_by_its_owner_only(locked: Running):
    with locked.client() as client:
        client.get("/memory", headers=bearer(ANN))
    files = list(locked.app.state.memory.path.parent.glob("memory-*.sqlite"))
    assert files and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)


def test_a_401_has_the_shape_of_the_others(locked: Running):
    response = httpx.get(f"{locked.url}/v1/models")
    assert (
        response.json()["error"]["code"] == "invalid_api_key"
        and response.headers["www-authenticate"] == "Bearer"
    )
