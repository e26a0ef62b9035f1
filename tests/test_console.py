"""The console: what it is made of, what it tells whom, and that nobody's text becomes markup. In a real browser."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.gate import Gate, open_gate
from server.keys import CHECK_EVERY_S, Keys
from server.record import Target
from server.routes.pages import FOLDER
from server.service import Service
from tests.browsing import CONTROLS, LEAST_CONTRAST, browser, open_page
from tests.seeded import make_adapter, peft_configs
from tests.serving import Clock, bearer, entry, listening, settings_for, write_keys
from tests.test_adapter_folder import add_manifest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MARKUP = "<img src=x onerror=hacked()>"
HOSTILE = (MARKUP, "</script><script>hacked()</script>", "\u202egpj.exe", "&lt;b&gt;")
OPERATOR, READER, WATCHER, TENANT = "operator-1", "reader-1", "watcher-1", "tenant-1"
MAX_BODY_BYTES = 100_000
ROOM_BYTES = 45_000
"""All but one of the adapters fit, of 52,000 bytes together."""


@pytest.fixture(scope="module")
def adapters(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shown")

    def make(name: str, config: str, num_labels: int, **manifest: Any) -> None:
        make_adapter(root / name, bert_base.folder, peft_configs("bert")[config], num_labels, seed=num_labels)
        add_manifest(root / name, bert_base, **manifest)

    make("ticket-intents", "lora-qv", 4, labels=("refund", "delivery", "account", "other"), max_length=16)
    make("film-reviews", "ia3-paper", 2, labels=("negative", "positive"))
    make("topics", "bottleneck-pfeiffer", 5, problem_type="multi_label", threshold=0.5)
    make("stars", "prefix", 1, problem_type="regression", labels=("stars",))
    make("languages", "head", 60)
    make("hostile", "bitfit", 4, labels=HOSTILE)
    shutil.copytree(root / "film-reviews", root / "cut")
    weights = root / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (root / MARKUP).mkdir()
    return root


@pytest.fixture(scope="module")
def service(adapters: Path, bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    source = tmp_path_factory.mktemp("source") / "canary"
    settings = settings_for(adapters, bert_base, adapter_bytes=ROOM_BYTES, source_root=str(source.parent))
    with Service(settings) as service:
        versions = []
        for seed in (1, 2):
            shutil.rmtree(source, ignore_errors=True)
            make_adapter(source, bert_base.folder, peft_configs("bert")["lora-qv"], 2, seed=seed)
            add_manifest(source, bert_base, labels=("keep", "drop"))
            record = service.lifecycle.put("canary", f"file:{source}", ["pilot"])
            versions.append(record.alias[0].version)
        service.lifecycle.set_alias("canary", (Target(versions[0], 90), Target(versions[1], 10)))
        service.lifecycle.put("film-reviews", None, ["pilot", "english"])
        yield service


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(
        tmp_path_factory.mktemp("keys") / "keys.json",
        entry(OPERATOR, "classify", "admin", "metrics"),
        entry(READER, "classify"),
        entry(WATCHER, "metrics"),
        entry(TENANT, "classify", tenant="acme"),
        acme={"adapters": ["film-*"]},
    )


@pytest.fixture(scope="module")
def address(service: Service, adapters: Path, bert_base: BaseModel) -> Iterator[str]:
    with listening(create_app(service.desk, MAX_BODY_BYTES), settings_for(adapters, bert_base)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def keyed(service: Service, adapters: Path, bert_base: BaseModel, key_file: Path) -> Iterator[str]:
    app = create_app(service.desk, MAX_BODY_BYTES, Gate(Keys(key_file)))
    with listening(app, settings_for(adapters, bert_base)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(running: Browser, address: str) -> Iterator[Page]:
    """The console of a server without keys, as it is first seen."""
    with open_page(running) as page:
        page.goto(address)
        page.wait_for_selector("#choices input")
        yield page


@contextmanager
def keyed_page(running: Browser, keyed: str, key: str | None = None) -> Iterator[Page]:
    """The console of a server with keys, which is given one."""
    with open_page(running, allowed=("401 (Unauthorized)", "403 (Forbidden)")) as page:
        page.goto(keyed)
        page.wait_for_selector("#key")
        if key is not None:
            use_key(page, key)
        yield page


def use_key(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.click("text=Use it")


def pick(page: Page, *references: str) -> None:
    for reference in references:
        page.get_by_role("group", name="Adapters").locator(f'input[value="{reference}"]').check()


def ask(page: Page, text: str, *references: str) -> None:
    pick(page, *references)
    page.fill("#text", text)
    page.click("#send")
    page.locator("#summary", has_text=re.compile("answered")).wait_for()


def stand_still(page: Page, address: str) -> None:
    """Open the console with a clock that moves only when it is told to."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    page.goto(address)
    page.wait_for_selector(".chart")


def rows(page: Page) -> list[str]:
    return page.locator("#table tbody th > bdi:first-child").all_inner_texts()


def seen_text(page: Page, selector: str) -> str:
    return page.locator(selector).first.inner_text()


# What is sent: files and headers


def test_the_page_and_its_parts_need_no_key_and_are_the_same_for_everybody(service: Service, key_file: Path) -> None:
    names = ["/", *(f"/assets/{path.name}" for path in (FOLDER / "assets").iterdir())]
    assert len(names) > 5
    open_app, keyed_app = create_app(service.desk, 1000), create_app(service.desk, 1000, Gate(Keys(key_file)))
    with TestClient(open_app) as anybody, TestClient(keyed_app) as stranger:
        for name in names:
            answers = [anybody.get(name), stranger.get(name), stranger.get(name, headers=bearer(TENANT))]
            assert {answer.status_code for answer in answers} == {200}, name
            assert len({answer.content for answer in answers}) == 1, name
        for name in ("/v1/adapters", "/v1/base", "/metrics", "/docs", "/assets", "/pages", "/console.html"):
            assert stranger.get(name).status_code == 401, name


def test_nothing_else_is_read_from_the_disk(service: Service) -> None:
    with TestClient(create_app(service.desk, 1000)) as client:
        for name in ("none", "", "..%2f..%2fapp.py", "%2e%2e/console.html", "..\\app.py", "%00", "x" * 5000):
            answer = client.get(f"/assets/{name}")
            assert answer.status_code == 404, name
            assert answer.headers["cache-control"] == "no-store"
        assert client.post("/").status_code == 405
        assert client.post("/assets/style.css").status_code == 405


def test_only_files_of_this_server_run_and_none_can_write_markup(service: Service) -> None:
    with TestClient(create_app(service.desk, 1000)) as client:
        for name in ("/", "/assets/console.js"):
            policy = client.get(name).headers["content-security-policy"]
            rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
            assert rules.pop("require-trusted-types-for") == "'script'"
            own = {name for name, value in rules.items() if value == "'self'"}
            assert own == {"script-src", "style-src", "connect-src", "img-src"}
            assert {rules[name] for name in rules.keys() - own} == {"'none'"}
            assert {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"} <= rules.keys()


def test_a_browser_asks_again_and_is_told_when_nothing_has_changed(service: Service) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    with TestClient(create_app(service.desk, 1000)) as client:
        for name in ("/", *(f"/assets/{path.name}" for path in (FOLDER / "assets").iterdir())):
            first = client.get(name)
            assert first.headers["cache-control"] == "no-cache"
            assert first.headers["content-type"].startswith(kinds[Path(name).suffix or ".html"])
            again = client.get(name, headers={"if-none-match": first.headers["etag"]})
            assert again.status_code == 304
            assert client.head(name).headers["content-length"] == first.headers["content-length"]


def test_the_files_name_no_other_host_and_hold_no_script_or_style_in_the_page() -> None:
    for path in [*FOLDER.glob("*.html"), *(FOLDER / "assets").iterdir()]:
        text = path.read_text(encoding="utf-8")
        hosts = set(re.findall(r"https?://[^\s\"'/]+", text))
        assert hosts <= {"http://www.w3.org", "http://127.0.0.1:8000"}, path  # SVG's name, and an example
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", text), path
        if path.suffix == ".html":
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script>", text), path
            for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
                assert not target.startswith("/"), "a proxy may serve the page below a path"
                assert target in ("./", "decision", "docs", "v1/adapters", "metrics") or (FOLDER / target).is_file()


def test_every_file_of_the_pages_is_in_the_wheel() -> None:
    root = FOLDER.parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packed = {path for glob in project["tool"]["setuptools"]["package-data"]["server"] for path in root.glob(glob)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= packed


def test_the_pages_can_be_switched_off(service: Service, adapters: Path, bert_base: BaseModel, key_file: Path) -> None:
    for keys, status in ((None, 404), (key_file, 401)):
        with (
            open_gate(settings_for(adapters, bert_base, pages=False, keys=keys)) as gate,
            TestClient(create_app(service.desk, 1000, gate)) as client,
        ):
            assert {client.get(name).status_code for name in ("/", "/assets/style.css")} == {status}
    with open_gate(settings_for(adapters, bert_base)) as gate:
        assert gate.has_pages


def test_an_adapter_says_where_it_is(service: Service) -> None:
    with TestClient(create_app(service.desk, MAX_BODY_BYTES)) as client:

        def tier() -> str:
            return str(client.get("/v1/adapters/languages").json()["versions"][0]["tier"])

        client.post("/v1/classify", json={"adapter_id": "languages", "inputs": "word1"})
        assert tier() == "device"
        for one in client.get("/v1/adapters").json()["adapters"]:
            if one["adapter_id"] != "languages":
                for version in one["versions"]:
                    reference = f"{one['adapter_id']}@{version['version']}"
                    client.post("/v1/classify", json={"adapter_id": reference, "inputs": "word1"})
        assert tier() == "disk"


# What is seen


def test_a_text_is_answered_by_all_that_are_picked_side_by_side(page: Page) -> None:
    ask(page, "word1 word2", "ticket-intents", "stars", "film-reviews")
    assert "3 of 3 adapters answered in" in seen_text(page, "#summary")
    assert page.locator(".answer h3").all_inner_texts() == ["film-reviews", "stars", "ticket-intents"]
    reviews = page.locator(".answer").nth(0)
    assert re.search(r"@[0-9a-f]{12} · ia3", reviews.inner_text())
    assert re.search(r"queue [\d.]+ ms · compute [\d.]+ ms · 4 tokens", reviews.inner_text())
    labels, scores = reviews.locator("li bdi").all_inner_texts(), reviews.locator(".score").all_inner_texts()
    assert sorted(labels) == ["negative", "positive"]
    assert seen_text(page, ".answer .verdict") == labels[0]
    assert abs(sum(map(float, scores)) - 1) < 0.002
    widths = page.eval_on_selector_all(
        ".answer:first-child .bar-of", "all => all.map(one => one.firstChild.offsetWidth / one.offsetWidth)"
    )
    assert all(abs(width - float(score)) < 0.02 for width, score in zip(widths, scores, strict=True))
    stars = page.locator(".answer").nth(1)
    assert stars.locator(".bar-of").count() == 0, "a number has no bar"
    assert stars.locator(".verdict").inner_text().endswith("stars")


def test_the_labels_that_reach_the_threshold_are_marked(page: Page) -> None:
    ask(page, "word7 word8", "topics")
    for line in page.locator(".scores li").all():
        reaches = float(line.locator(".score").inner_text()) >= 0.5
        assert (line.get_attribute("class") == "best") == reaches
    assert "from 0.5 on" in seen_text(page, ".verdict")


def test_a_pair_is_asked_as_a_pair_and_scores_are_as_many_as_wanted(page: Page) -> None:
    page.check("#has-pair")
    page.fill("#text-pair", "word3 word4 word5")
    page.select_option("#top-k", "3")
    ask(page, "word1", "languages")
    assert "7 tokens" in seen_text(page, ".spent")
    assert page.locator(".scores li").count() == 3
    page.select_option("#top-k", "all")
    page.click("#send")
    page.locator(".scores li").nth(59).wait_for()
    assert page.locator(".scores li").count() == 60


def test_versions_of_an_adapter_are_asked_beside_each_other(page: Page) -> None:
    page.fill("#pick-search", "canary@")
    references = page.locator("#choices bdi").all_inner_texts()
    assert len(references) == 2
    ask(page, "word1", *references)
    assert [f"canary{one.partition(' ')[0]}" for one in page.locator(".from").all_inner_texts()] == references


def test_search_and_tags_narrow_what_is_picked(page: Page) -> None:
    page.select_option("#pick-tag", "pilot")
    assert page.locator("#choices label:not(.version) bdi").all_inner_texts() == ["canary", "film-reviews"]
    page.click("text=Pick all shown")
    page.fill("#pick-search", "film")
    assert page.locator("#choices bdi").all_inner_texts() == ["film-reviews"]
    assert seen_text(page, "#picked") == "2 picked of 9"
    page.click("text=Pick none")
    assert seen_text(page, "#picked") == "0 picked of 9"
    page.fill("#pick-search", "nothing is called so")
    assert seen_text(page, "#choices") == "No adapter is called so."


def test_what_goes_wrong_is_shown_as_what_it_is(page: Page) -> None:
    ask(page, "word1 " * 40, "film-reviews", "ticket-intents", "cut")
    assert seen_text(page, "#summary").startswith("1 of 3 adapters answered")
    cut, intents = (one.inner_text() for one in page.locator(".answer.failed").all())
    assert "adapter failed 409" in cut
    assert "cannot be read" in cut
    assert "text too long 422" in intents
    assert "42 tokens, this adapter takes 16" in intents
    page.check("#truncate")
    page.click("#send")
    page.locator("#summary", has_text="2 of 3 adapters answered").wait_for()


def test_a_refused_request_shows_the_problem_and_its_reason(running: Browser, address: str) -> None:
    with open_page(running, allowed=("422 (Unprocessable",)) as page:
        page.goto(address)
        page.wait_for_selector("#choices input")
        ask(page, "   ", "film-reviews")
        notice = seen_text(page, "#answers .notice")
        assert "invalid input (422)" in notice
        assert "`inputs.text` is an empty text" in notice
        page.click("text=Pick none")
        page.click("#send")
        assert seen_text(page, "#summary") == "Pick at least one adapter."
        assert page.evaluate("document.activeElement.id") == "pick-search"


def test_what_strangers_have_named_stays_text(page: Page) -> None:
    page.evaluate("() => { window.hacked = () => { window.isHacked = true; }; }")
    ask(page, MARKUP, "hostile", MARKUP)
    assert MARKUP in rows(page)
    failed = seen_text(page, ".answer.failed")
    assert MARKUP in failed
    assert sorted(page.locator(".scores bdi").all_text_contents()) == sorted(HOSTILE)
    assert page.locator("main img, main script, main b").count() == 0
    assert page.evaluate("window.isHacked") is None


def test_markup_would_be_refused_even_if_a_script_wrote_it(running: Browser, address: str) -> None:
    with open_page(running, allowed=("TrustedHTML",)) as page:
        page.goto(address)
        refused = page.evaluate("try { document.body.innerHTML = '<b>x</b>'; false } catch (error) { error.name }")
        assert refused == "TypeError"


def test_the_table_is_sorted_and_filtered(page: Page) -> None:
    everything = rows(page)
    assert everything == sorted(everything)
    page.click("th button:has-text('Adapter')")
    assert rows(page) == sorted(everything, reverse=True)
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.click("th button:has-text('Size')")
    assert rows(page)[0] == "languages"
    page.select_option("#table-method", "ia3")
    assert rows(page) == ["film-reviews"]
    assert seen_text(page, "#table-count") == "1 of 9"
    page.select_option("#table-method", "")
    page.select_option("#table-status", "failed")
    assert sorted(rows(page)) == sorted([MARKUP, "cut"])
    page.select_option("#table-status", "")
    page.fill("#table-search", "refund")
    assert rows(page) == ["ticket-intents"], "labels are searched too"


def test_the_table_shows_where_an_adapter_is_what_it_stands_for_and_why_it_is_refused(page: Page) -> None:
    line = page.locator("tr", has_text="canary").inner_text()
    assert re.search(r"[0-9a-f]{12} 90 %\s+[0-9a-f]{12} 10 %", line)
    assert "cannot be read" in page.locator("tr", has_text="cut").inner_text()
    ask(page, "word1", "stars")
    page.locator("tr", has_text="stars").locator("td", has_text="device").wait_for()


def test_throughput_and_latency_are_drawn_from_the_metrics(running: Browser, address: str) -> None:
    with open_page(running) as page:
        stand_still(page, address)
        ask(page, "word1", "film-reviews", "canary")
        before = int(page.locator("tr", has_text="film-reviews").locator("td").last.inner_text().replace("–", "0"))
        with page.expect_response("**/metrics"):
            page.clock.run_for(5000)
        page.locator("svg[aria-label^='Throughput. texts: now 0.4 /s, errors: now 0 /s']").wait_for()
        page.locator("svg[aria-label^='Latency. p50: now']").wait_for()
        assert int(page.locator("tr", has_text="film-reviews").locator("td").last.inner_text()) == before + 1


def test_a_page_that_is_not_seen_asks_for_nothing(running: Browser, address: str) -> None:
    with open_page(running) as page:
        stand_still(page, address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        show = "(hidden) => { Object.defineProperty(document, 'hidden', { configurable: true, value: hidden });" + (
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        page.evaluate(show, True)
        page.clock.run_for(120_000)
        assert asked == []
        with page.expect_response("**/metrics"), page.expect_response("**/v1/adapters"):
            page.evaluate(show, False)


def test_a_server_that_does_not_answer_is_told_until_it_does(running: Browser, address: str) -> None:
    with open_page(running, allowed=("ERR_INTERNET_DISCONNECTED",)) as page:
        stand_still(page, address)
        page.context.set_offline(True)
        page.clock.run_for(5000)
        page.locator("#trouble .notice", has_text="does not answer").wait_for()
        page.context.set_offline(False)
        page.clock.run_for(5000)
        page.locator("#trouble .notice").wait_for(state="detached")


def test_nothing_is_asked_of_another_host_and_no_text_is_in_an_address(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector(".chart")
    ask(page, "markertext", "film-reviews")
    assert len(asked) > 10
    assert all(url.startswith(address) and "markertext" not in url for url in [*asked, page.url])


# Keys


def test_without_a_key_only_the_place_to_put_one_is_shown(running: Browser, keyed: str) -> None:
    with keyed_page(running, keyed) as page:
        assert page.get_by_role("heading", name="This server wants a key").is_visible()
        assert page.locator("#parts").is_hidden()
        assert page.evaluate("document.activeElement.id") == "key"
        for wrong, word in (("wrong-1", "does not know this key"), ("schlüssel", "ASCII")):
            use_key(page, wrong)
            page.locator("#trouble .notice", has_text=word).wait_for()
            assert page.locator("#parts").is_hidden()
            assert page.input_value("#key") == ""


def test_a_key_opens_the_page_until_it_is_forgotten(running: Browser, keyed: str) -> None:
    with keyed_page(running, keyed, OPERATOR) as page:
        page.wait_for_selector(".chart")
        ask(page, "word1", "film-reviews")
        page.reload()
        page.wait_for_selector(".chart")
        assert page.locator("#key-part").is_hidden()
        kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href].join()")
        assert OPERATOR not in kept
        with page.context.new_page() as other:  # another tab has to be told anew
            other.goto(keyed)
            other.wait_for_selector("#key")
        page.click("text=Forget the key")
        assert OPERATOR not in page.evaluate("JSON.stringify(sessionStorage)")
        assert page.locator("tbody tr").count() == 0
        page.reload()
        page.wait_for_selector("#key")


def test_a_key_sees_what_it_may_see(running: Browser, keyed: str) -> None:
    with keyed_page(running, keyed, READER) as page:
        page.wait_for_selector("#live-note")
        assert "scope metrics" in seen_text(page, "#live-note")
        assert "scope metrics" in seen_text(page, "#table-note")
        assert page.locator(".chart").count() == 0
        assert len(rows(page)) == 9
    with keyed_page(running, keyed, TENANT) as page:
        page.wait_for_selector("#live-note")
        assert rows(page) == ["film-reviews"]
    with keyed_page(running, keyed, WATCHER) as page:
        page.locator("#trouble .notice", has_text="needs a key with the scope `classify`").wait_for()
        page.click("text=Forget the key")
        assert page.locator("#key").is_visible()


def test_behind_a_router_that_hides_metrics_the_rest_is_shown(running: Browser, address: str) -> None:
    with open_page(running, allowed=("404 (Not Found)",)) as page:
        page.route("**/metrics", lambda route: route.fulfill(status=404, body="<h1>404 Not Found</h1>"))
        page.goto(address)
        page.wait_for_selector("#live-note")
        assert "not through the router" in seen_text(page, "#live-note")
        assert "not through the router" in seen_text(page, "#table-note")
        assert page.locator("#trouble .notice").count() == 0
        assert len(rows(page)) == 9


def test_a_key_that_is_revoked_closes_the_page(
    running: Browser, service: Service, adapters: Path, bert_base: BaseModel, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys.json", entry("brief-1", "classify"))
    keys = Keys(path, clock := Clock())
    app = create_app(service.desk, MAX_BODY_BYTES, Gate(keys))
    with (
        listening(app, settings_for(adapters, bert_base)) as (host, port),
        keyed_page(running, f"http://{host}:{port}", "brief-1") as page,
    ):
        page.wait_for_selector("#live-note")
        pick(page, "film-reviews")
        write_keys(path, entry("other-1", "classify"))
        clock.now += CHECK_EVERY_S
        page.fill("#text", "word1")
        page.click("#send")
        page.locator("#trouble .notice", has_text="the key was refused").wait_for()
        assert page.locator("#parts").is_hidden()


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(running: Browser, address: str, keyed: str, scheme: str) -> None:
    with open_page(running, allowed=("401 (Unauthorized)",), color_scheme=scheme) as page:
        page.goto(address)
        page.wait_for_selector(".chart")
        ask(page, "word1 " * 40, "film-reviews", "topics", "ticket-intents", "stars")
        grounds = [page.evaluate("getComputedStyle(document.body).backgroundColor")]
        contrast, text = page.evaluate(LEAST_CONTRAST)
        assert contrast >= 4.5, text
        page.goto(keyed)
        page.wait_for_selector("#key")
        use_key(page, "wrong-1")
        page.wait_for_selector("#trouble .notice")
        contrast, text = page.evaluate(LEAST_CONTRAST)
        assert contrast >= 4.5, text
    assert grounds == [{"light": "rgb(246, 247, 248)", "dark": "rgb(20, 23, 27)"}[scheme]]


def test_the_page_is_used_with_the_keyboard_alone(page: Page) -> None:
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "pick-search":
            page.keyboard.type("film")
        elif page.evaluate("document.activeElement.matches('#choices input')"):
            page.keyboard.press("Space")
        elif reached[-1] == "text":
            page.keyboard.type("word1 word2")
            page.keyboard.press("Control+Enter")
            break
    assert reached[0] == "skip"
    page.wait_for_selector(".answer")
    assert seen_text(page, ".answer h3") == "film-reviews"


def test_every_control_has_a_name_and_results_are_announced(page: Page) -> None:
    ask(page, "word1", "film-reviews", "canary")
    unnamed = page.eval_on_selector_all(
        CONTROLS,
        """all => all.filter(one => one.checkVisibility() && !(one.labels?.length || one.textContent.trim()
             || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby"))).map(one => one.outerHTML)""",
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1
    status = page.locator("#summary")
    assert status.get_attribute("role") == "status"
    assert re.search(r"film-reviews: (positive|negative) 0\.\d+", status.text_content() or "")
    for drawn in page.locator("svg").all():
        assert drawn.get_attribute("role") == "img"
        assert drawn.get_attribute("aria-label")
    for one in page.locator("[aria-labelledby]").all():
        assert page.locator(f"#{one.get_attribute('aria-labelledby')}").count() == 1


def test_nothing_is_cut_off_on_a_screen_of_any_width(page: Page) -> None:
    page.wait_for_selector(".chart")
    ask(page, "word1", "film-reviews", "hostile", "topics")
    for width in (320, 390, 768, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_the_page_says_how_to_ask(running: Browser, address: str) -> None:
    with open_page(running, java_script_enabled=False) as page:
        page.goto(address)
        text = page.inner_text("body")
        assert "curl -s" in text
        assert "/v1/classify/fanout" in text
        assert page.locator("form:visible").count() == 0
        assert page.get_by_role("link", name="/docs").get_attribute("href") == "docs"


def test_readings_are_told_as_prometheus_tells_them(page: Page) -> None:
    told = page.evaluate(
        r"""async () => {
          const { parse, total, buckets, quantile } = await import("/assets/prometheus.js");
          const line = (le, count) => `t_bucket{le="${le}"} ${count}\n`;
          const lines = (a, b, c) => "# HELP t x\n" + line("0.1", a) + line("0.5", b) + line("+Inf", c);
          const of = (...counts) => buckets(parse(lines(...counts)), "t");
          const [before, now] = [of(5, 5, 5), of(7, 13, 15)];
          const odd = parse('x_total{a="q\\"}\\\\ \\n{b=",b="2"} 3.0\nx_total{a="z"} 1e2\nx_created 5\n');
          return [
            [0.2, 0.5, 0.95].map((share) => quantile(share, before, now)), quantile(0.5, now, now),
            total(odd, "x_total"), odd.get("x_total")[0].labels.a,
          ];
        }"""
    )
    assert told == [[pytest.approx(0.1), pytest.approx(0.3), 0.5], None, 103, 'q"}\\ \n{b=']
