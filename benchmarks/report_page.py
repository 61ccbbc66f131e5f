"""How long the page of an evaluation of 500 cases and three candidates takes to open and to filter in a browser.

`python benchmarks/report_page.py --browser chromium` makes the report up, writes its page (`--output`), opens it in a
headless Chromium and prints the median and the longest over `--runs` of: load to interactive (navigation start until
the script is done, by the page's own clock), each filter, an order, another candidate and opening a case (from the
event until the page is painted again). `load_cpu_ms` is what the page's main thread worked for a load, whatever else
the machine does. Without `--browser` it only writes the page. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "reporting")]

from many_cases import many_cases  # noqa: E402

from po_distill.reporting.html import render_html  # noqa: E402

_INTERACTIVE = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def _set(control: str, value: str, event: str = "change") -> str:
    chosen = f"const it = document.getElementById('by-{control}'); it.value = '{value}'"
    return f"{chosen}; it.dispatchEvent(new Event('{event}'))"


STEPS = {
    "filter_text_ms": _set("words", "iberia", "input"),
    "filter_clear_ms": "document.getElementById('clear').click()",
    "filter_slice_ms": _set("slice", "class:aligned"),
    "filter_slice_off_ms": _set("slice", ""),
    "filter_failures_ms": "document.getElementById('by-failures').click()",
    "filter_failures_off_ms": "document.getElementById('by-failures').click()",
    "filter_cause_ms": _set("cause", "missing_review"),
    "filter_cause_off_ms": "document.getElementById('clear').click()",
    "candidate_ms": _set("right", "1"),
    "order_ms": _set("order", "id"),
    "open_case_ms": "document.querySelector('.entry').open = true",
}


async def measure(page: Path, program: str, runs: int) -> tuple[dict[str, list[float]], list[str], list[str]]:
    """(milliseconds by step, problems, requests) over so many loads of the page in one browser."""
    from browser import Browser

    taken: dict[str, list[float]] = {"load_ms": [], "load_cpu_ms": [], **{name: [] for name in STEPS}}
    async with Browser(program) as browser:
        await browser.look(1280)
        await browser.send("Performance.enable", timeDomain="threadTicks")
        for _ in range(runs):
            await browser.open(page)
            taken["load_cpu_ms"].append(await _busy_ms(browser))
            taken["load_ms"].append(float(await browser.run(_INTERACTIVE)))
            for name, script in STEPS.items():
                taken[name].append(await browser.timed(f"{{ {script} }}"))
        return taken, browser.problems, [url for url in browser.requests if url != page.resolve().as_uri()]


async def _busy_ms(browser: Any) -> float:
    """What the main thread worked since the page was opened."""
    metrics = (await browser.send("Performance.getMetrics"))["metrics"]
    return 1000 * float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--browser", help="a Chromium")
    parser.add_argument("--output", type=Path, help="where the page goes; by default nowhere that lasts")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report, completions = many_cases(Path(folder), given.cases)
        page = given.output or Path(folder) / "report.html"
        start = time.perf_counter()
        page.write_text(render_html(report, completions), encoding="utf-8")
        found: dict[str, object] = {
            "cases": report.cases,
            "candidates": len(report.candidates),
            "size_mb": round(page.stat().st_size / 1e6, 2),
            "render_s": round(time.perf_counter() - start, 2),
        }
        if given.browser:
            taken, problems, requests = asyncio.run(measure(page, given.browser, given.runs))
            for name, values in taken.items():
                found[name] = round(statistics.median(values), 1)
                found[f"{name}_longest"] = round(max(values), 1)
            longest = max(max(values) for values in taken.values())
            found |= {"problems": len(problems), "requests": len(requests), "within_limit": longest < 1000}
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
