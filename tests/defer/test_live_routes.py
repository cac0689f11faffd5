"""The live page's routes beside the gateway's: who is let in, what a browser may do with them, and wrong questions."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from defer.documents.address import Address
from defer.errors import NotReady, UnknownModel
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Service
from defer.live.board import ACTIONS, Asked
from defer.live.routes import FILES, MOST, OPEN, live_routes
from defer.live.what_if import Slower
from node_agent.pages import Page
from tests.defer.cli_fixtures import python
from tests.defer.gateway_fixtures import FakeBackend, exchange

TOKEN = "a-token-of-some-length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Ask = Callable[..., tuple[int, Any, Any]]


class FakeBoard:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None

    def _answer(self, *what: Any) -> dict[str, str]:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
        return {"told": what[0]}

    def state(self, event: int, point: float) -> dict[str, str]:
        return self._answer("state", event, point)

    def what_if(self, asked: Asked) -> dict[str, str]:
        return self._answer("what-if", asked)

    def act(self, action: str, model: str) -> None:
        self._answer("act", action, model)


class FakeWatcher:
    def __init__(self) -> None:
        self.ready = Page("ready\n")

    def pages(self) -> dict[str, Callable[[], Page]]:
        return {
            "/metrics": lambda: Page("defer_info 1\n"),
            "/healthz": lambda: Page("alive\n"),
            "/readyz": lambda: self.ready,
        }


@contextmanager
def served(board: FakeBoard, token: str = "", watcher: FakeWatcher | None = None) -> Iterator[Ask]:
    routes = live_routes(board, watcher or FakeWatcher(), token=token)  # type: ignore[arg-type]
    options = Options(Address("127.0.0.1", 0), token=token)
    with Gateway(Service(FakeBackend()), options, more=routes, open_paths=OPEN) as gateway:
        yield lambda method, path, body=None, headers=None: exchange(
            gateway.http, method, path, body, headers
        )


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


@pytest.fixture
def ask(board: FakeBoard) -> Iterator[Ask]:
    with served(board) as asking:
        yield asking


def test_every_file_of_the_page_is_served_with_its_kind_and_a_strict_policy(ask: Ask):
    shipped = {each.name for each in resources.files("defer.live").joinpath("page").iterdir()}
    assert shipped == {name for name, _ in FILES.values()}
    for path, (name, kind) in FILES.items():
        status, body, headers = ask("GET", f"/live/{path}")
        assert status == 200
        assert headers["content-type"] == kind
        assert body == resources.files("defer.live").joinpath("page", name).read_bytes()
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";") if part
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_names_nothing_that_lies_elsewhere_and_needs_no_inline_script():
    for name, _ in FILES.values():
        text = resources.files("defer.live").joinpath("page", name).read_text()
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"')]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # SVG's own name, which nobody fetches
        assert "innerHTML" not in text
        assert "eval(" not in text
        assert "document.write" not in text
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", text)


@pytest.mark.parametrize("path", ["/", "/live"])
def test_the_ways_to_the_page(ask: Ask, path: str):
    status, _, headers = ask("GET", path)
    assert (status, headers["location"]) == (307, "/live/")


def test_the_gateways_own_paths_are_as_they_were(ask: Ask):
    assert ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert ask("GET", "/v2")[1]["name"]
    assert ask("GET", "/v2/models/same")[0] == 200
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    assert ask("POST", "/v2/models/same/infer", {"inputs": [tensor]})[0] == 200
    assert ask("GET", "/live/other.js")[0] == 404
    assert ask("POST", "/live/state")[0] == 405
    assert not any(path.startswith("/v2") for path in OPEN)


def test_a_gateway_of_its_own_process_serves_the_protocol_and_not_the_page():
    with Gateway(Service(FakeBackend()), Options(Address("127.0.0.1", 0), token=TOKEN)) as gateway:
        assert gateway.http is not None
        assert exchange(gateway.http, "GET", "/v2/health/live")[0] == 200
        assert exchange(gateway.http, "GET", "/healthz")[:2] == (200, b"alive\n")
        assert exchange(gateway.http, "GET", "/readyz")[:2] == (200, b"ready\n")
        gateway.service.draining = True
        assert exchange(gateway.http, "GET", "/readyz")[:2] == (503, b"the gateway is shutting down\n")
        for path in set(OPEN) - {"/healthz", "/readyz"}:
            assert exchange(gateway.http, "GET", path)[0] == 401
            assert exchange(gateway.http, "GET", path, None, BEARER)[0] == 404


def test_probes_say_what_the_watcher_says(board: FakeBoard):
    watcher = FakeWatcher()
    with served(board, TOKEN, watcher) as ask:
        assert ask("GET", "/healthz")[:2] == (200, b"alive\n")
        watcher.ready = Page("no model is deployed\n", 503)
        status, body, headers = ask("GET", "/readyz")
        assert (status, body) == (503, b"no model is deployed\n")
        assert headers["cache-control"] == "no-store"
        assert ask("GET", "/metrics")[0] == 401
        assert ask("GET", "/metrics", None, BEARER)[0] == 200


def test_with_a_token_the_page_is_open_and_its_answers_are_not(board: FakeBoard):
    with served(board, TOKEN) as ask:
        assert b"data-token" in ask("GET", "/live/")[1]
        for method, path in (("GET", "/live/state"), ("POST", "/live/what-if"), ("POST", "/live/act")):
            assert ask(method, path, {} if method == "POST" else None)[0] == 401
            wrong = {"Authorization": "Bearer " + TOKEN[::-1]}
            assert ask(method, path, {} if method == "POST" else None, wrong)[0] == 401
        assert board.asked == []
        assert ask("GET", "/live/state", None, BEARER)[0] == 200
        assert ask("POST", "/live/act", {"action": "drain", "model": "m"}, BEARER)[:2] == (
            202,
            {"begun": "drain"},
        )
        assert board.asked[-1] == ("act", "drain", "m")


def test_without_a_token_one_can_look_and_ask_but_not_act(board: FakeBoard, ask: Ask):
    assert b"data-token" not in ask("GET", "/live/")[1]
    assert ask("GET", "/live/state?event=7&point=1.5")[0] == 200
    assert board.asked == [("state", 7, 1.5)]
    for action in ACTIONS:
        status, told, _ = ask("POST", "/live/act", {"action": action, "model": "m"}, BEARER)
        assert status == 403
        assert "--token-file" in told["hint"]
    assert len(board.asked) == 1


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_gets_nothing_done(board: FakeBoard, site: str):
    with served(board, TOKEN) as ask:
        for method, path, body in (
            ("GET", "/live/state", None),
            ("POST", "/live/what-if", {"model": "m"}),
            ("POST", "/live/act", {"action": "drain", "model": "m"}),
        ):
            status, _, headers = ask(method, path, body, {**BEARER, "Sec-Fetch-Site": site})
            assert status == 403
            assert "access-control-allow-origin" not in headers
        assert board.asked == []
        assert ask("GET", "/live/state", None, {**BEARER, "Sec-Fetch-Site": "same-origin"})[0] == 200


def test_a_what_if_arrives_as_it_was_asked(board: FakeBoard, ask: Ask):
    question = {"model": "m", "without": ["a", "b"], "links": [["a", "c", 0.5]]}
    assert ask("POST", "/live/what-if", question)[0] == 200
    ((_, asked),) = board.asked
    assert asked.model == "m"
    assert asked.changes.without == ("a", "b")
    assert asked.changes.links == (Slower("a", "c", 0.5),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"without": []}',
        b'{"model": 3}',
        b'{"model": "m", "more": 1}',
        b'{"model": "m", "links": [["a", "b"]]}',
        b'{"model": "m", "links": [["a", "b", "fast"]]}',
        b'{"model": "' + b"m" * MOST + b'"}',
    ],
)
def test_a_question_that_is_none_is_one_clear_error(board: FakeBoard, ask: Ask, body: bytes):
    status, told, _ = ask("POST", "/live/what-if", body)
    assert status == 400
    assert told["error"]
    assert "Traceback" not in told["error"]
    assert board.asked == []


@pytest.mark.parametrize("query", ["event=x", "point=", "event=1.5"])
def test_numbers_that_are_none(board: FakeBoard, ask: Ask, query: str):
    status, told, _ = ask("GET", f"/live/state?{query}")
    assert status == 400
    assert "numbers" in told["error"]
    assert board.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnknownModel("no model 'm'"), 404), (NotReady("busy"), 503), (ZeroDivisionError("oh"), 500)],
)
def test_what_goes_wrong_has_a_status_and_a_code(board: FakeBoard, ask: Ask, error: Exception, status: int):
    board.error = error
    answered, told, _ = ask("POST", "/live/what-if", {"model": "m"})
    assert answered == status
    assert told["code"]
    assert told["error"]


WITHOUT_GATEWAY = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("anyio", "starlette", "uvicorn", "grpc"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from defer.cli import main
main()
"""


@pytest.mark.integration
def test_without_the_gateways_packages_there_is_one_clear_error(tmp_path: Path):
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"\n'
    )
    words = ("serve", "--cluster", str(cluster), "--no-state", "--http", "127.0.0.1:0")
    result = python(WITHOUT_GATEWAY, *words)
    assert result.returncode == 69
    assert result.stderr.count("error:") == 1
    assert "defer-edge[gateway]" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_body_without_end_is_cut_off(board: FakeBoard):
    routes = live_routes(board, FakeWatcher())  # type: ignore[arg-type]
    with Gateway(Service(FakeBackend()), Options(Address("127.0.0.1", 0)), more=routes) as gateway:
        assert gateway.http is not None
        connection = http.client.HTTPConnection(gateway.http.host, gateway.http.port, timeout=20)
        try:
            connection.putrequest("POST", "/live/what-if")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            for _ in range(MOST // 4096 + 1):
                connection.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            assert connection.getresponse().status == 400
        finally:
            connection.close()
    assert board.asked == []
