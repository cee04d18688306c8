"""The grading page in a real headless browser: keys, focus, screen reader names, dark mode, and nothing loaded."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from people.finished_run import write_run
from people.grading import grading, send
from pyrite.store import open_store
from real.chromium import Page, browsing
from report.report_factory import make

pytestmark = pytest.mark.real

MARKUP = "<script>document.title = 'attacked'</script><img src=x onerror=\"document.title='attacked'\">"
QUERY = "document.getElementById('query')?.textContent"
PRESSED = "document.querySelector('[aria-pressed=true]')?.dataset.grade ?? null"
FOCUS = "document.activeElement.id || document.activeElement.dataset.grade"


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write_run(open_store(str(tmp_path / "store")), make(hostile=MARKUP))


def test_a_person_grades_with_the_keyboard(tmp_path: Path, run: str) -> None:
    with grading(tmp_path / "store", run, "--pairs", "20") as (process, url):
        asyncio.run(_grade_all(url, tmp_path))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert "corrected by 20 grades" in output
    file = tmp_path / f"store/runs/{run}/people/grades.qrels"
    relevance = [int(line.split()[3]) for line in file.read_text().splitlines()]
    assert relevance == [1, 0, *([3] * 18)]


async def _grade_all(url: str, folder: Path) -> None:
    pairs = [send(f"{url}pairs/{position}") for position in range(20)]
    async with browsing(folder / "profile") as page:
        for domain in ("Page", "Network", "Log", "Accessibility"):
            await page.send(f"{domain}.enable")
        await page.send("Page.navigate", url=url)
        await page.until(QUERY, pairs[0]["query"])
        assert await page.evaluate("document.getElementById('passage').textContent") == pairs[0]["passage"]
        assert await page.evaluate("document.querySelectorAll('#pair img, #pair script').length") == 0
        assert await page.evaluate(FOCUS) == "query"
        await _check_names(page, pairs[0]["query"])

        await page.press("3")
        await page.until(QUERY, pairs[1]["query"])
        await page.until("document.getElementById('status').textContent", "1 of 20 graded")
        assert await page.evaluate(PRESSED) is None
        await page.press("ArrowLeft")
        await page.until(PRESSED, "3")
        assert await page.evaluate(QUERY) == pairs[0]["query"]
        await page.press("2")
        await page.until(QUERY, pairs[1]["query"])

        # With the Tab key and Enter, as without a mouse.
        await page.press("Tab")
        assert await page.evaluate(FOCUS) == "1"
        await page.press("Enter")
        await page.until(QUERY, pairs[2]["query"])
        await page.press("Backspace")
        await page.until(PRESSED, "1")
        await page.press("1")
        for position in range(2, 20):
            await page.until("document.getElementById('status').textContent", f"{position} of 20 graded")
            await page.until(QUERY, pairs[position]["query"])
            await page.press("4")
        await page.until("document.getElementById('done').hidden", False)
        await _check_colours(page)

        await page.press("Tab")
        assert await page.evaluate(FOCUS) == "finish"
        await page.press("Enter")
        await page.until("document.getElementById('end').hidden", False)
        assert await page.evaluate("document.title") == "medquad-niddk: Pyrite grades"
        _check_events(page, url)


async def _check_names(page: Page, query: str) -> None:
    """What a screen reader announces: roles and names."""
    nodes = (await page.send("Accessibility.getFullAXTree"))["nodes"]
    names = {(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]}
    for name in ("1 not relevant", "2 on the topic, no answer", "3 partial answer", "4 full answer"):
        assert ("button", name) in names, names
    assert ("heading", query.strip()) in names
    assert ("progressbar", "graded pairs") in names
    assert ("group", "grade of the passage for the query") in names
    assert any(role == "status" for role, _ in names)


async def _check_colours(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    for scheme, colour in (("dark", "rgb(21, 23, 26)"), ("light", "rgb(255, 255, 255)")):
        await page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert await page.evaluate(background) == colour


def _check_events(page: Page, url: str) -> None:
    """The browser requested only the page and its data, and logged no error or violation of the policy."""
    sent = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert len(sent) > 20
    assert all(address.startswith(url) for address in sent), sent
    logged = [e["params"]["entry"] for e in page.events if e.get("method") == "Log.entryAdded"]
    assert not logged, logged


def test_a_stopped_server_is_reported_on_the_page(tmp_path: Path, run: str) -> None:
    async def grade_without_server(process: "subprocess.Popen[str]", url: str) -> None:
        async with browsing(tmp_path / "profile") as page:
            await page.send("Page.navigate", url=url)
            await page.until("document.getElementById('pair')?.hidden", False)
            process.kill()
            process.wait(20)
            await page.press("3")
            await page.until("document.getElementById('error').textContent.includes('all grades are stored')", True)

    with grading(tmp_path / "store", run) as (process, url):
        asyncio.run(grade_without_server(process, url))
