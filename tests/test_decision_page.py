"""The page of decisions in a real browser: with and without scripts, by keyboard, in any width, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from decision import command
from decision.rows import QualityRow
from server.advice import Advice
from server.app import create_app
from server.base_model import BaseModel
from server.gate import Gate
from server.keys import Keys
from server.service import Service
from tests import planted
from tests.browsing import CONTROLS, LEAST_CONTRAST, browser, open_page
from tests.serving import entry, listening, make_adapters, settings_for, until, write_keys
from tests.test_decision_quality import twin

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ASKED = "/decision?task_type=topic&train_rows=500&adapters=90&hot=50&rps=100&p95_ms=60&memory_gib=8"
UNDECIDED = "/decision?task_type=pair&train_rows=100&device=gpu"
INFEASIBLE = "/decision?task_type=topic&train_rows=500&memory_gib=0.1"
WRONG = "/decision?task_type=topic&train_rows=few&hot=9"
MARKUP = "<img src=x onerror=hacked()>"
READER = "reader-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One candidate has a name that would be markup."""
    rows = [row for row in planted.quality((100, 500)) if isinstance(row, QualityRow) and row.task in ("trec", "sick")]
    rows += twin(rows, "lora-all-8", MARKUP, "lora", 2_000_000)
    about = {"topic": "trec", "pair": "sick"}
    return planted.write(tmp_path_factory.mktemp("evidence"), [*rows, *planted.serving()], about)


@pytest.fixture(scope="module")
def service(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    adapters = make_adapters(tmp_path_factory.mktemp("adapters"), bert_base, ["one"])
    with Service(settings_for(adapters, bert_base)) as service:
        yield service


@pytest.fixture(scope="module")
def address(service: Service, folder: Path, bert_base: BaseModel) -> Iterator[str]:
    app = create_app(service.desk, 1000, advice=Advice(folder))
    with listening(app, settings_for(folder, bert_base)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def page(running: Browser, address: str) -> Iterator[Page]:
    with open_page(running, allowed=("422 (Unprocessable",), viewport={"width": 1280, "height": 900}) as page:
        page.goto(address + ASKED)
        page.wait_for_selector("input[type=range]")
        yield page


def slider(page: Page, label: str) -> str:
    return f"input[type=range][aria-label='{label}, slider']"


def move(page: Page, label: str, step: int) -> None:
    """As a hand would: input while it moves, change when it lets go."""
    page.fill(slider(page, label), str(step))


def settled(page: Page) -> None:
    page.wait_for_selector("#result:not([aria-busy])")


def asked_of(page: Page) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(page.url).query).items()}


def test_without_scripts_the_page_is_read_asked_and_followed(running: Browser, address: str) -> None:
    with open_page(running, java_script_enabled=False) as page:
        page.goto(address + ASKED)
        first = page.inner_text(".verdict")
        assert "Expected accuracy" in first
        assert page.locator("svg").count() == 3
        page.select_option("#in-task_type", "pair")
        page.fill("#in-train_rows", "120")
        page.click("text=Decide")
        page.wait_for_url("**/decision?*")
        assert asked_of(page)["task_type"] == "pair"
        assert "pair, as sick" in page.inner_text(".way")
        assert page.inner_text(".verdict") != first
        page.click(".arms >> text=topic, as trec")
        page.wait_for_url("**task_type=topic**")
        assert page.input_value("#in-train_rows") == "120"


def test_a_slider_changes_answer_path_and_address_without_a_new_page(page: Page) -> None:
    page.evaluate("window.isTheSame = true")
    before = page.inner_text("#result")
    move(page, "Training rows", 75)
    settled(page)
    assert page.input_value("#in-train_rows") == "100"
    assert asked_of(page)["train_rows"] == "100"
    assert page.inner_text("#result") != before
    assert any("100" in shown for shown in page.locator(".way .compared").all_inner_texts())
    move(page, "Requests", 290)
    settled(page)
    assert asked_of(page)["move"] == "rps"
    assert "Along requests" in page.inner_text(".charts")
    assert page.evaluate("window.isTheSame")


def test_back_and_forth_and_another_tab_show_the_same(page: Page) -> None:
    first = page.inner_text("#result")
    page.select_option("#in-serving", "merged")
    settled(page)
    second, at = page.inner_text("#result"), page.url
    assert second != first
    page.go_back()
    settled(page)
    until(lambda: page.input_value("#in-serving") == "mixed")
    assert page.inner_text("#result") == first
    page.go_forward()
    until(lambda: page.input_value("#in-serving") == "merged")
    settled(page)
    with page.context.new_page() as other:
        other.goto(at)
        assert other.inner_text("#result") == second


def test_what_was_not_taken_leads_to_where_it_is(page: Page) -> None:
    page.click(".arms >> text=pair, as sick")
    until(lambda: page.input_value("#in-task_type") == "pair")
    settled(page)
    assert page.locator(".arm[aria-current]", has_text="pair, as sick").count() == 1
    page.click(".arms >> text=decoder")
    page.wait_for_selector(".verdict.literature")
    settled(page)
    assert page.input_value("#in-base") == "llama-1b"
    assert "not measured here" in page.inner_text(".verdict")
    page.go_back()
    page.click("text=The whole tree")
    page.click(".full-tree >> text=generation")
    until(lambda: page.input_value("#in-task_type") == "generation")
    settled(page)
    assert page.locator("#whole-tree[open]").count() == 1, "what was opened stays open"


def test_what_is_undecided_says_what_to_run(page: Page, address: str) -> None:
    page.goto(address + UNDECIDED)
    told = page.inner_text(".verdict")
    assert "Undecided" in told
    assert "Measure this" in told
    assert "make gpu-evidence" in told
    page.goto(address + INFEASIBLE)
    assert "Nothing meets the limits" in page.inner_text(".verdict")


def test_what_is_wrong_stands_at_its_control_until_it_is_right(page: Page) -> None:
    page.fill("#in-train_rows", "few")
    page.wait_for_selector("#wrong-train_rows")
    assert "not 'few'" in page.inner_text("#wrong-train_rows")
    assert page.get_attribute("#in-train_rows", "aria-describedby") == "wrong-train_rows"
    assert page.input_value("#in-train_rows") == "few"
    page.fill("#in-train_rows", "300")
    page.wait_for_selector("#wrong-train_rows", state="detached")
    settled(page)
    assert page.get_attribute("#in-train_rows", "aria-invalid") is None
    assert "300" in page.inner_text(".way")


def test_fewer_adapters_than_are_hot_are_never_asked_for_by_a_slider(page: Page) -> None:
    move(page, "Adapters", 40)
    settled(page)
    assert int(page.input_value("#in-hot")) <= int(page.input_value("#in-adapters"))
    assert page.locator(".wrong").count() == 0


def test_the_page_is_used_with_the_keyboard_alone(page: Page) -> None:
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
        if reached[-1] == "Training rows, slider":
            page.keyboard.press("ArrowLeft")
            break
    assert "in-task_type" in reached
    until(lambda: page.input_value("#in-train_rows") != "500")
    settled(page)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Training rows, slider"
    status = page.locator("#summary")
    assert status.get_attribute("role") == "status"
    assert re.match(r"(Use|Undecided|Nothing meets)", status.text_content() or "")
    page.focus(".arms a >> nth=0")
    page.keyboard.press("Enter")
    settled(page)
    assert page.evaluate("document.getElementById('result').contains(document.activeElement)")


def test_every_control_has_a_name_and_every_drawing_says_what_it_shows(page: Page) -> None:
    unnamed = page.eval_on_selector_all(
        CONTROLS,
        """all => all.filter(one => one.checkVisibility() && !(one.labels?.length || one.textContent.trim()
             || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby"))).map(one => one.outerHTML)""",
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1
    assert page.locator("nav [aria-current=page]").inner_text() == "Decision"
    drawn = page.locator("svg")
    assert drawn.count() == 3
    for one in drawn.all():
        assert one.get_attribute("role") == "img"
        assert len(one.get_attribute("aria-label") or "") > 40
    for one in page.locator("[aria-labelledby]").all():
        assert page.locator(f"#{one.get_attribute('aria-labelledby')}").count() == 1
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(running: Browser, address: str, scheme: str) -> None:
    with open_page(running, allowed=("422 (Unprocessable",), color_scheme=scheme) as page:
        for path in (ASKED, UNDECIDED, INFEASIBLE, WRONG):
            page.goto(address + path)
            contrast, text = page.evaluate(LEAST_CONTRAST)
            assert contrast >= 4.5, (path, text)


def test_nothing_is_cut_off_on_a_screen_of_any_width(page: Page, address: str) -> None:
    for path in (ASKED, UNDECIDED):
        page.goto(address + path)
        page.wait_for_selector("input[type=range]")
        for width in (320, 390, 768, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def test_names_in_rows_stay_text_and_no_other_host_is_asked(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector("input[type=range]")
    page.select_option("#in-task_type", "pair")
    settled(page)
    assert MARKUP in page.inner_text("#rivals")
    assert page.locator("main img, main script").count() == 0
    assert len(asked) > 4
    assert all(url.startswith(address) for url in asked)


def test_a_key_that_was_given_to_the_console_opens_the_page(
    running: Browser, service: Service, folder: Path, bert_base: BaseModel, tmp_path: Path
) -> None:
    keys = Keys(write_keys(tmp_path / "keys.json", entry(READER, "classify")))
    app = create_app(service.desk, 10_000, Gate(keys), Advice(folder))
    with (
        listening(app, settings_for(folder, bert_base)) as (host, port),
        open_page(running, allowed=("401 (Unauthorized)", "403 (Forbidden)")) as page,
    ):
        page.goto(f"http://{host}:{port}{ASKED}")
        assert "This server wants a key" in page.inner_text("main")
        page.click("main >> text=console")
        page.fill("#key", READER)
        page.click("text=Use it")
        page.wait_for_selector("#choices input")
        page.click("nav >> text=Decision")
        page.wait_for_selector(".answered")
        assert page.locator("#key-part").count() == 0
        move(page, "Training rows", 75)
        until(lambda: asked_of(page)["train_rows"] == "100")
        settled(page)
        assert page.locator("#documents").is_hidden(), "a browser asks for it without the key"


def test_a_server_that_does_not_answer_is_told_until_it_does(running: Browser, address: str) -> None:
    with open_page(running, allowed=("ERR_INTERNET_DISCONNECTED",)) as page:
        page.goto(address + ASKED)
        page.wait_for_selector("input[type=range]")
        page.context.set_offline(True)
        page.select_option("#in-task_type", "pair")
        page.locator("#trouble .notice", has_text="does not answer").wait_for()
        page.context.set_offline(False)
        page.select_option("#in-task_type", "topic")
        page.locator("#trouble .notice").wait_for(state="detached")


def test_the_file_without_a_server_shows_tree_matrix_and_an_answer(
    running: Browser, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tree.html"
    assert command.main(["render", "--evidence", str(folder), "--output", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r'\s(src|href)="|url\(', text), "it needs no other file"
    with open_page(running, java_script_enabled=False) as page:
        page.goto(path.as_uri())
        assert page.locator("table").count() == 2
        assert page.locator("svg").count() == 2
        assert page.locator(".full-tree li").count() > 5
        assert MARKUP in page.inner_text("main")
        page.set_viewport_size({"width": 320, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
