"""The page in a real browser: PO_DISTILL_BROWSER names a Chromium, PO_DISTILL_AXE axe-core's axe.min.js."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from many_cases import many_cases

from po_distill.reporting.html import render_html

PROGRAM = os.environ.get("PO_DISTILL_BROWSER")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="PO_DISTILL_BROWSER names no browser")
CASES = 60
OPEN = "document.querySelectorAll('.entry[open]').length"
COUNT = "document.getElementById('count').textContent"
SHOWN = "document.querySelectorAll('.entry:not([hidden])').length"
HERE = "document.activeElement.closest('.entry')?.id ?? document.activeElement.id"


def choose(control: str, value: str) -> str:
    return f"{{ const it = document.getElementById('by-{control}'); it.value = {value!r}; " + (
        f"it.dispatchEvent(new Event('{'input' if control == 'words' else 'change'}')) }}"
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    report, given = many_cases(folder, CASES)
    hostile = given["student"][0].model_copy(update={"text": "</script><script>document.title='taken'</script>\u2028"})
    given["student"][0] = hostile
    found = folder / "report.html"
    found.write_text(render_html(report, given), encoding="utf-8")
    return found


def browsing(visit):
    """Run a visit with a browser of its own; afterwards nothing was asked for and nothing was wrong."""
    from browser import Browser

    async def run():
        async with Browser(PROGRAM) as browser:
            await browser.look(1280)
            await visit(browser)
            assert browser.problems == []
            assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}
            assert len({url.partition("#")[0] for url in browser.requests}) == 1

    asyncio.run(run())


def test_the_page_opens_and_filters_without_a_problem_or_a_request(path):
    async def visit(browser):
        await browser.open(path)
        assert (await browser.run("document.title")).startswith("Evaluation of product_owner")
        assert await browser.run(SHOWN) == CASES
        assert await browser.run("document.getElementById('controls').hidden") is False
        await browser.run(choose("words", "PO-7-00011"))
        assert (await browser.run(COUNT)).startswith(f"1 of {CASES} cases shown")
        await browser.run(choose("words", "no such words"))
        assert (await browser.run(COUNT)).startswith(f"0 of {CASES} cases shown: clear the filters")
        await browser.run("document.getElementById('clear').click()")
        assert await browser.run(SHOWN) == CASES
        await browser.run(choose("slice", "tier:simple"))
        assert 0 < await browser.run(SHOWN) < CASES
        await browser.run(choose("slice", "watch:"))
        assert await browser.run(SHOWN) == 1
        await browser.run("document.getElementById('clear').click()")
        await browser.run("document.getElementById('by-failures').click()")
        failures = await browser.run(SHOWN)
        assert await browser.run(COUNT) == f"{failures} of {CASES} cases shown; student failed in {failures} of them."
        await browser.run(choose("right", "1"))
        assert await browser.run(SHOWN) > failures
        cause = await browser.run("document.getElementById('by-cause').options[1].value")
        await browser.run(choose("cause", cause))
        causes = await browser.run(
            "[...document.querySelectorAll('.entry:not([hidden]) .cause')].map(e=>e.textContent)"
        )
        assert set(causes) == {cause}

    browsing(visit)


def test_cases_are_ordered_as_asked(path):
    async def visit(browser):
        await browser.open(path)
        ids = "[...document.querySelectorAll('.entry code')].map((code) => code.textContent)"
        first = await browser.run(ids)
        await browser.run(choose("order", "id"))
        assert await browser.run(ids) == sorted(first) != first
        await browser.run(choose("order", "lost"))
        assert await browser.run(ids) == first

    browsing(visit)


def test_a_case_opens_with_both_answers_side_by_side_and_words_marked(path):
    async def visit(browser):
        await browser.open(path)
        script = (
            "(async () => { for (const entry of document.querySelectorAll('.entry')) entry.open = true; "
            "await new Promise((done) => setTimeout(done, 300)); "
            "return document.querySelectorAll('.compared').length })()"
        )
        assert await browser.run(script) == CASES
        for kind in ("same", "reworded", "missing", "added"):
            assert await browser.run(f"document.querySelectorAll('.compared tr.{kind}').length") > 0
        cells = "[...document.querySelector('tr.reworded').cells].map((cell) => cell.textContent)"
        sign, left, right = await browser.run(cells)
        assert sign.startswith("~")
        assert left != right
        assert await browser.run("document.querySelectorAll('tr.reworded ins').length") > 0
        assert await browser.run("document.querySelectorAll('ins b, del b, .case script').length") == 0
        await browser.run(choose("left", "1"))  # two that are both no reference
        assert "through those of teacher" in await browser.run("document.querySelector('.entry .case').textContent")
        await browser.run("document.getElementById('by-differing').click()")
        assert await browser.run("document.querySelector('tr.same').getClientRects().length") == 0

    browsing(visit)


def test_an_answer_that_attacks_the_page_is_text(path):
    async def visit(browser):
        await browser.open(path)
        await browser.run(choose("words", "taken"))
        assert await browser.run(SHOWN) == 1
        await browser.run("document.querySelector('.entry:not([hidden])').open = true")
        await asyncio.sleep(0.2)
        shown = "document.querySelector('.entry:not([hidden]) .case').textContent"
        assert "</script><script>document.title='taken'</script>" in await browser.run(shown)
        assert (await browser.run("document.title")).startswith("Evaluation")

    browsing(visit)


def test_everything_can_be_done_with_keys(path):
    async def visit(browser):
        await browser.open(path)
        await browser.press("Tab")
        assert await browser.run("document.activeElement.textContent") == "Skip to the cases"
        await browser.press("/")
        assert await browser.run(HERE) == "by-words"
        for letter in "simple":
            await browser.press(letter)
        assert await browser.run("document.getElementById('by-words').value") == "simple"
        assert 0 < await browser.run(SHOWN) < CASES
        await browser.press("Enter")
        first = await browser.run(HERE)
        assert first.startswith("case-")
        await browser.press("j")
        second = await browser.run(HERE)
        await browser.press("ArrowDown")
        third = await browser.run(HERE)
        assert len({first, second, third}) == 3
        await browser.press("ArrowUp")
        await browser.press("k")
        assert await browser.run(HERE) == first
        outline = await browser.run("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "2px"
        await browser.press("Enter")
        assert await browser.run(OPEN) == 1
        await asyncio.sleep(0.2)  # what opens is filled by an event of its own
        await browser.press("Tab")
        assert await browser.run("document.activeElement.closest('.case') !== null")
        await browser.press("Escape")
        assert await browser.run(OPEN) == 0
        assert await browser.run(HERE) == first
        await browser.run("document.getElementById('by-keys').click()")
        await browser.press("j")
        assert await browser.run(HERE) == first

    browsing(visit)


def test_links_lead_to_a_case_and_to_all_cases_of_a_cause(path):
    async def visit(browser):
        await browser.open(path, "#case-3")
        assert await browser.run("document.getElementById('case-3').open")
        await browser.run(choose("words", "no such words"))
        await browser.run("document.querySelector('#failures a[href^=\"#case-\"]').click()")
        await asyncio.sleep(0.3)
        assert await browser.run(SHOWN) == CASES
        assert await browser.run("document.activeElement.closest('.entry').open")
        await browser.run("document.querySelector('a[data-cause]').click()")
        told = await browser.run(
            "[document.querySelector('a[data-cause]').textContent, document.querySelector('#by-cause').value]"
        )
        assert (await browser.run(COUNT)).startswith(f"{told[0]} of {CASES} cases shown")
        assert told[1]

    browsing(visit)


def test_no_width_scrolls_sideways_and_print_opens_failures_and_hides_controls(path, tmp_path):
    async def visit(browser):
        for width in (1280, 375):
            await browser.look(width)
            await browser.open(path)
            await browser.run("document.getElementById('case-0').open = true")
            assert await browser.run("document.documentElement.scrollWidth") <= width
        await browser.run("document.getElementById('case-0').open = false")
        await browser.run(f"addEventListener('beforeprint', () => {{ window.printed = {OPEN} }})")
        await browser.print_pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert await browser.run("window.printed") > 1
        assert await browser.run(OPEN) == 0
        await browser.send("Emulation.setEmulatedMedia", media="print")
        assert await browser.run("getComputedStyle(document.getElementById('controls')).display") == "none"

    browsing(visit)


def test_without_javascript_the_cases_are_there_and_open(path):
    async def visit(browser):
        await browser.send("Emulation.setScriptExecutionDisabled", value=True)
        await browser.send("Page.navigate", url=path.resolve().as_uri())
        await asyncio.sleep(2)
        found = await browser.send("DOM.getDocument")
        root = found["root"]["nodeId"]
        entries = await browser.send("DOM.querySelectorAll", nodeId=root, selector="details.entry .answers")
        assert len(entries["nodeIds"]) == CASES
        note = await browser.send("DOM.querySelector", nodeId=root, selector="noscript p")
        assert note["nodeId"]

    browsing(visit)


@pytest.mark.skipif(not os.environ.get("PO_DISTILL_AXE"), reason="PO_DISTILL_AXE names no axe.min.js")
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_violation(path, width, dark):
    axe = Path(os.environ.get("PO_DISTILL_AXE", "")).read_text(encoding="utf-8")

    async def visit(browser):
        await browser.send("Page.setBypassCSP", enabled=True)  # for axe, which the page's policy would not let in
        await browser.look(width, dark=dark)
        await browser.open(path)
        await browser.run("for (const number of [0, 1, 20]) document.getElementById(`case-${number}`).open = true")
        # What is off the screen has no place yet, and axe would take it for lying under something else.
        await browser.run(
            "for (const it of document.querySelectorAll('.entry')) it.style.contentVisibility = 'visible'"
        )
        await browser.run(f"{axe}; 0")
        told = await browser.run(
            "axe.run(document).then((found) => JSON.stringify([found.passes.length, found.violations]))"
        )
        passes, violations = json.loads(told)
        assert passes > 30
        assert [(one["id"], [node["failureSummary"] for node in one["nodes"][:3]]) for one in violations] == []

    browsing(visit)
