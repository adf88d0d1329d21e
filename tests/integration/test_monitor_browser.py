"""The page in a real Chromium: it shows what the files say, runs nothing that came in a file, and stands still."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from core.paths import Workspace
from hostile_root import hostile_root
from monitor_process import MonitorThread
from sample_root import SampleRoot, stamp, working_day

CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=10_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def monitor(workspace: Workspace) -> Iterator[MonitorThread]:
    process = MonitorThread(workspace)
    yield process
    process.stop()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page in which any script error or console error fails the test."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "vendor" not in m.text else None)
    page.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
    yield page
    assert [c for c in complaints if "net::ERR" not in c and "Failed to load resource" not in c] == []


@pytest.fixture
def sample(workspace: Workspace) -> SampleRoot:
    return working_day(workspace)


PANEL_ROWS = (
    *("#flow li", "#now-facts div", "#curve-rows tr", "#verdict-rows tr", "#board-rows tr", "#example-rows tr"),
    *("#journal-rows li", "#served-files li", "#lane-counts li", "#waiting li", "#ignored-rows li"),
    *("#commit-rows li", "#source-rows li", "#gauges li", "#processes li"),
)


def drawn(page: Page) -> None:
    """Wait until every panel shows its first news; the server answers them one by one, in any order."""
    for rows in PANEL_ROWS:
        expect(page.locator(rows).first).to_be_visible()


def opened(page: Page, monitor: MonitorThread) -> Page:
    page.goto(monitor.url)
    expect(page.locator("#link")).to_have_text(re.compile("live|polling"))
    return page


def row(page: Page, text: str) -> Any:
    return page.locator("#verdict-rows tr", has_text=text)


def test_every_panel_shows_what_the_files_say(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    expect(page.locator("#state")).to_have_text("training")
    expect(page.locator("#reason")).to_have_text("training dialogues-0412.jsonl")
    expect(page.locator("#now-facts")).to_contain_text("612 of 879")
    expect(page.locator("#now-facts")).to_contain_text("2 min 44 s")
    expect(page.locator("#order")).to_contain_text("took effect at step 588")
    expect(page.locator("#progress")).to_have_js_property("value", 612)
    broken = row(page, "broken.jsonl")
    expect(broken).to_contain_text("line 17, column 42: a comma is missing between two members")
    expect(broken.locator(".fix")).to_have_text("mend line 17 of broken.jsonl and drop it again")
    expect(row(page, "leftshift-train.jsonl")).to_contain_text("incoming 2.29 → 0.42")
    best = sample.catalogue.head()
    assert best is not None
    expect(page.locator("#served-facts")).to_contain_text(best.id)
    expect(page.locator("#served-files")).to_contain_text("greetings.jsonl")
    expect(page.locator("#board-rows tr").first).to_contain_text("0.0001")
    expect(page.locator("#board-rows tr").first).to_contain_text("better on leftshift: 94 of 100 against 0 of 100")
    expect(page.locator("#lane-counts [data-lane=rejected] b")).to_have_text("2")
    expect(page.locator("#ignored-rows")).to_contain_text("a symbolic link; links are never read")
    expect(page.locator("#commit-rows li")).to_have_count(3)
    expect(page.locator("#source-rows li").first).to_contain_text("syllo_local@2")
    expect(page.locator("#example-rows tr").nth(1)).to_contain_text("wrong")
    expect(page.locator("#gauges")).to_contain_text("memory")
    expect(page.locator("#journal-rows")).to_contain_text("is served now")
    expect(page.locator("#curve-rows tr").first.locator("th")).to_have_text("612")
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page).to_have_title("training · Dropforge")


def test_nothing_that_came_in_a_file_runs_or_becomes_an_element(
    workspace: Workspace, monitor: MonitorThread, page: Page
) -> None:
    sample = hostile_root(workspace)
    opened(page, monitor)
    for place in ("#reason", "#now-file", "#verdict-rows", "#board-rows", "#example-rows", "#ignored-rows", "#waiting",
                  "#source-rows", "#journal-rows", "#served-files"):  # fmt: skip
        expect(page.locator(place)).to_contain_text("<img src=x onerror=")
    expect(page.locator("#verdict-rows")).to_contain_text("\\u202egpj.jsonl")
    head = sample.catalogue.head()
    assert head is not None
    job_id, sha256 = (head.manifest["jobs"][0][key] for key in ("job_id", "sha256"))
    for address in (
        f"job={job_id}",
        f"checkpoint={head.id}",
        f"file={sha256}",
        "job=%3Cimg%20src=x%20onerror=alert(1)%3E",
    ):
        page.goto(f"{monitor.url}/#{address}")
        expect(page.locator("#detail")).to_be_visible()
        expect(page.locator("#detail-body")).not_to_be_empty()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, main svg, iframe, object").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator("a[href^='javascript:' i]").count() == 0


def test_the_policy_of_the_page_refuses_inline_script(monitor: MonitorThread, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(monitor.url)
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
            const script = document.createElement("script");
            try { script.textContent = "window.hacked = 1"; document.body.append(script); } catch { resolve("types"); }
        })"""
    )
    assert blocked in ("types", "script-src-elem", "require-trusted-types-for")
    assert page.evaluate("window.hacked") is None
    page.close()


def test_without_the_chart_the_table_says_the_same(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    page.route("**/ui/vendor/*", lambda route: route.fulfill(status=404))
    opened(page, monitor)
    expect(page.locator("#chart-missing")).to_contain_text("make setup")
    expect(page.locator("#curve-rows tr").first.locator("th")).to_have_text("612")
    expect(page.locator("#curve-note")).to_contain_text("run main")
    expect(page.locator("#verdict-rows tr")).to_have_count(8)


def test_a_new_verdict_appears_by_itself_and_disturbs_nothing(
    sample: SampleRoot, monitor: MonitorThread, page: Page
) -> None:
    opened(page, monitor)
    link = row(page, "greetings.jsonl").locator("a").first
    link.focus()
    page.evaluate("document.querySelector('#verdict-rows').lastElementChild.mark = 'same node'")
    sample.job("rejected", "late.jsonl", code="empty", message="the file is empty")
    expect(row(page, "late.jsonl")).to_contain_text("the file is empty")
    expect(link).to_be_focused()
    assert page.evaluate("document.querySelector('#verdict-rows').lastElementChild.mark") == "same node"


def test_polls_do_not_move_the_page(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) "
        "window.moved += entry.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    drawn(opened(page, monitor))
    page.evaluate("window.moved = 0")
    places = "[...document.querySelectorAll('section')].map((s) => [s.id, s.getBoundingClientRect().top])"
    before = page.evaluate(places)
    for step in (613, 614, 615):
        sample.goes_on(step, loss=1.2)
        expect(page.locator("#now-facts")).to_contain_text(f"{step} of 879")
    expect(page.locator("#curve-rows tr").first.locator("th")).to_have_text("615")
    assert page.evaluate(places) == before
    assert page.evaluate("window.moved") < 0.05


def test_a_list_that_is_cut_says_how_many_more_there_are(
    sample: SampleRoot, monitor: MonitorThread, page: Page
) -> None:
    for number in range(8):
        sample.job("normal", f"next-{number}.jsonl")
    opened(page, monitor)
    expect(page.locator("#waiting li")).to_have_count(7)
    expect(page.locator("#waiting li").last).to_have_text("and 4 more")


def test_old_news_is_called_old(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    expect(page.locator("#state")).to_have_text("training")
    sample.daemon("training", heartbeat=stamp(300), current_job="x")
    expect(page.locator("#state")).to_have_text("stale")
    expect(page.locator("#reason")).to_contain_text("not heard for 5 min")
    expect(page.locator("#flow [data-station=training]")).to_contain_text("interrupted")
    assert "8,421" not in page.locator("#now-facts").inner_text()
    expect(page).to_have_title("stale · Dropforge")


def test_a_curve_whose_steps_were_taken_back_is_drawn_anew(
    sample: SampleRoot, monitor: MonitorThread, page: Page
) -> None:
    opened(page, monitor)
    newest = page.locator("#curve-rows tr").first.locator("th")
    expect(newest).to_have_text("612")
    ledger = sqlite3.connect(sample.ws.status_file("ledger.db"))
    ledger.execute("DELETE FROM metrics WHERE step > 60")
    ledger.commit()
    ledger.close()
    expect(newest).to_have_text("60")


def test_a_monitor_that_ended_is_an_alarm(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    expect(page.locator("#alarm")).to_be_hidden()
    monitor.stop()
    expect(page.locator("#alarm")).to_contain_text("does not answer since")
    expect(page.locator("#link")).to_have_text("no answer")


def test_a_ledger_that_cannot_be_read_is_said_and_the_rest_goes_on(
    sample: SampleRoot, monitor: MonitorThread, page: Page
) -> None:
    for file in sample.ws.status_dir.glob("ledger.db*"):
        file.unlink()
    sample.ws.status_file("ledger.db").write_bytes(b"no database" * 500)
    opened(page, monitor)
    expect(page.locator("#alarm")).to_contain_text("dropforge verify --rebuild")
    expect(page.locator("#verdict-rows tr")).to_have_count(8)
    expect(page.locator("#link")).not_to_have_text("no answer")


def test_an_empty_root_says_what_to_do_first(workspace: Workspace, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#start-commands")).to_contain_text(f"cp your.jsonl {workspace.root}/inbox/")
    expect(page.locator("#start-commands")).to_contain_text("dropforge up")
    SampleRoot(workspace).job("normal", "first.jsonl")
    expect(page.locator("#start")).to_be_hidden()


def test_a_verdict_leads_to_its_checkpoint_and_on_to_the_files(
    sample: SampleRoot, monitor: MonitorThread, page: Page
) -> None:
    opened(page, monitor)
    best = sample.catalogue.head()
    assert best is not None
    row(page, "leftshift-train.jsonl").get_by_role("link", name=best.id).click()
    detail = page.locator("#detail")
    expect(detail.locator("#detail-title")).to_have_text(best.id)
    expect(detail.locator("ol.numbered li")).to_have_count(2)
    expect(detail).to_contain_text(f"dropforge rewind {best.id}")
    detail.get_by_role("link", name="greetings.jsonl").click()
    expect(detail.locator("#detail-title")).to_have_text("greetings.jsonl")
    expect(detail).to_contain_text("235 trained on, 5 held out")
    page.go_back()
    expect(detail.locator("#detail-title")).to_have_text(best.id)


def test_the_keyboard_is_enough(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    drawn(opened(page, monitor))
    expect(page.locator("#verdict-rows tr")).to_have_count(8)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "broken.jsonl":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail .fix")).to_contain_text("mend line 17")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert page.evaluate("document.activeElement.textContent") == "broken.jsonl"


def test_verdicts_are_filtered_and_searched(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    page.get_by_role("button", name="refused").click()
    expect(page.locator("#verdict-rows tr")).to_have_count(2)
    page.get_by_role("button", name="all", exact=True).click()
    expect(page.locator("#verdict-rows tr")).to_have_count(8)
    page.get_by_label("Search verdicts").fill("non_finite")
    expect(page.locator("#verdict-rows tr")).to_have_count(1)
    page.get_by_label("Search verdicts").fill("no such file")
    expect(page.locator("#verdicts-empty")).to_have_text("No verdict matches.")


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    sample: SampleRoot, monitor: MonitorThread, page: Page, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    drawn(opened(page, monitor))
    expect(page.locator("#verdict-rows tr")).to_have_count(8)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def contrast(first: list[float], second: list[float]) -> float:
    """WCAG 2 contrast ratio of two sRGB colours of 0-255."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


READABLE = """() => [...document.querySelectorAll('.badge, .dim, .fix, .effect, a.ref, td, h2')]
  .filter((node) => node.offsetParent)
  .map((node) => {
    let back = node;
    while (back && /^rgba\\(0, 0, 0, 0\\)$/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
    const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    return [node.className + ' ' + node.textContent.slice(0, 30), numbers(getComputedStyle(node).color),
            numbers(getComputedStyle(back ?? document.body).backgroundColor)];
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(sample: SampleRoot, monitor: MonitorThread, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    drawn(opened(page, monitor))
    expect(page.locator("#verdict-rows tr")).to_have_count(8)
    measured = [(text, round(contrast(ink, back), 2)) for text, ink, back in page.evaluate(READABLE)]
    assert [(text, ratio) for text, ratio in measured if ratio < 4.5] == []


def test_the_chosen_scheme_is_kept(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    opened(page, monitor)
    light = page.evaluate(ground)
    page.get_by_role("button", name="Switch between dark and light").click()
    dark = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == dark


def test_eight_tabs_all_live_and_share_one_stream(
    sample: SampleRoot, monitor: MonitorThread, context: BrowserContext, wait_until: Callable[..., None]
) -> None:
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(monitor.url)
        expect(page.locator("#verdict-rows tr")).to_have_count(8)
    assert monitor.metric("dropforge_monitor_open_streams") == 1
    sample.job("rejected", "late.jsonl")
    for page in pages:
        expect(row(page, "late.jsonl")).to_be_visible()
    for page in pages:
        page.close()
    wait_until(lambda: monitor.metric("dropforge_monitor_open_streams") == 0, what="the stream's end")


def test_a_hidden_tab_holds_no_stream_and_asks_nothing(
    sample: SampleRoot, monitor: MonitorThread, page: Page, wait_until: Callable[..., None]
) -> None:
    opened(page, monitor)
    wait_until(lambda: monitor.metric("dropforge_monitor_open_streams") == 1, what="the stream")
    show = "(hidden) => { Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true }); "
    show += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(show, True)
    wait_until(lambda: monitor.metric("dropforge_monitor_open_streams") == 0, what="the stream's end")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    sample.job("rejected", "while-hidden.jsonl")
    page.wait_for_timeout(3000)
    assert asked == []
    page.evaluate(show, False)
    expect(row(page, "while-hidden.jsonl")).to_be_visible()


def test_a_poll_of_an_unchanged_subject_brings_no_body(sample: SampleRoot, monitor: MonitorThread, page: Page) -> None:
    opened(page, monitor)
    with page.expect_response(lambda r: "/api/leaderboard" in r.url and r.status == 304, timeout=15_000):
        pass
