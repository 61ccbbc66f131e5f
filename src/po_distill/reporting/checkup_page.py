"""A Checkup as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from po_distill.dataset_rules import RULES
from po_distill.errors import MissingExtraError
from po_distill.records import Checkup, RuleFinding
from po_distill.reporting import dataset_plots
from po_distill.reporting.checkup_lines import (
    Line,
    class_rows,
    headline,
    length_rows,
    length_summary,
    many,
    missing_line,
    ordered_rules,
    percent,
    reasons,
    remedies,
    sameness,
    shown_place,
    state_of,
    stored_scores,
    variety,
    what_is_left,
)
from po_distill.reporting.foreign_text import for_page
from po_distill.reporting.page import breakable, document, figure, pairs, section, table

_STATES = {"broken": "failed", "allowed": "not-judged", "kept": "passed"}


def render_checkup(checkup: Checkup, *, min_score: float | None = None) -> str:
    """What the doctor found, as a page. `min_score` is marked in the scores.

    Without matplotlib (extra `report`) the page says what is missing in place of the plots; no figure is in a
    plot alone.
    """
    plots, note = _plots(checkup, min_score)
    sections = (
        section("Rules", _rules(checkup)),
        section("Rows", note + _beside(plots, "Accepted and rejected", _rows(checkup))),
        section("Classes", _beside(plots, "Classes of the accepted rows", _classes(checkup))),
        section("Prompts, duplicates and leaks", _lines(sameness(checkup))),
        section("Variety", _lines(variety(checkup))),
        section("In the answers", _facts(checkup)),
        section("Scores", _beside(plots, "Rows by score", _scores(checkup))),
        section("Length in tokens", _beside(plots, "Rows by length", _lengths(checkup))),
        section("Target", _target(checkup)),
        section("What was looked at", _method(checkup)),
    )
    name = checkup.path.replace("\\", "/").rsplit("/", 1)[-1]
    return document(
        f"Checkup of {name}",
        _header(checkup),
        sections,
        f"Written by po_distill, which looked at {many(checkup.rows, 'row')} in {checkup.duration_s:.1f} s.",
        styles=("checkup.css",),
    )


def _share(part: int, whole: int) -> str:
    return f'<span class="figure">{for_page(percent(part, whole))}</span>'


def _header(checkup: Checkup) -> str:
    rejected = sum(checkup.rejected.values())
    return (
        f"<h1>Checkup of a dataset for the role {for_page(checkup.role)}</h1>\n"
        f'<p class="outcome {"passed" if checkup.fit else "failed"}">The dataset is '
        f"{for_page(headline(checkup), longest=None)}.</p>\n"
        f"<p>{many(checkup.rows, 'row')} = {checkup.accepted:,} accepted + {rejected:,} rejected. Built now, a dataset "
        f"holds {many(checkup.left, 'row')}: {what_is_left(checkup)}.</p>\n"
        f'<p class="soft path">{for_page(checkup.path, longest=None)}</p>'
    )


def _plots(checkup: Checkup, min_score: float | None) -> tuple[dict[str, str], str]:
    """The plots by title, and a note where there can be none."""
    try:
        drawn = {
            "Accepted and rejected": dataset_plots.outcomes(checkup),
            "Classes of the accepted rows": dataset_plots.classes(checkup),
            "Rows by score": dataset_plots.score_histogram(checkup.scores, checkup.score_mean, min_score),
            "Rows by length": dataset_plots.token_lengths(checkup.lengths) if checkup.lengths else None,
        }
    except MissingExtraError as error:
        return {}, f'<p class="soft">{for_page(error.problem)} {for_page(error.fix)}</p>'
    return {title: svg for title, svg in drawn.items() if svg}, ""


def _beside(plots: dict[str, str], title: str, told: str) -> str:
    """A plot with what is told beside it; below it on a phone."""
    if not told or title not in plots:
        return told
    return f'<div class="beside">{figure(title, plots[title])}<div>{told}</div></div>'


def _rules(checkup: Checkup) -> str:
    rules = ordered_rules(checkup)
    told = f'<ul class="rules">{"".join(_rule(rule, checkup) for rule in rules)}</ul>' if rules else ""
    found = [(names, for_page(fix, longest=None)) for names, fix in remedies(checkup)]
    return told + (f"<h3>What to do</h3>{pairs(found)}" if found else "")


def _rule(rule: RuleFinding, checkup: Checkup) -> str:
    state = state_of(rule)
    count = f' <span class="count">{rule.rows:,}</span>' if rule.rows else ""
    if state == "kept":
        told = f"<p>{for_page(RULES.get(rule.rule, rule.detail), longest=None)}</p>"
    else:
        told = f"<p>{for_page(rule.detail, longest=None)}</p>"
        places = ", ".join(for_page(shown_place(place, checkup.path)) for place in rule.where)
        told += f'<p class="soft path">First: {places}</p>' if places else ""
    return (
        f'<li class="{state}"><b class="{_STATES[state]}">{state}</b>'
        f"<div><h3>{breakable(rule.rule)}{count}</h3>{told}</div></li>"
    )


def _rows(checkup: Checkup) -> str:
    found = reasons(checkup)
    if not found:
        return "<p>Every row is accepted.</p>"
    rows = [
        (reason, [f"{refused:,}" if refused else "–", _share(refused, checkup.rows) if refused else "", f"{shown:,}"])
        for reason, refused, shown in found
    ]
    rejected = sum(checkup.rejected.values())
    rows.append(("all rejected rows", [f"{rejected:,}", _share(rejected, checkup.rows), ""]))
    return table(["Reason", "Rejected for it", "", "Rows that show it"], rows, kind="total")


def _classes(checkup: Checkup) -> str:
    rows = [
        (
            row.label,
            [
                f"{row.rows:,}",
                _share(row.rows, checkup.rows),
                f"{row.accepted:,}",
                _share(row.accepted, checkup.accepted) + (' <b class="failed">rare</b>' if row.rare else ""),
            ],
        )
        for row in class_rows(checkup)
    ]
    return table(["Class", "All rows", "", "Accepted", ""], rows) if rows else ""


def _lines(lines: list[Line]) -> str:
    return pairs((line.name, _told(line)) for line in lines) if lines else ""


def _told(line: Line) -> str:
    mark = '<b class="failed">Mind:</b> ' if line.grave else ""
    return mark + for_page(line.value, longest=None)


def _facts(checkup: Checkup) -> str:
    if not checkup.facts:
        return ""
    rows = [
        (fact.name, [f"{fact.count:,}", "–" if fact.rendered is None else f"{fact.rendered:,}"])
        for fact in checkup.facts
    ]
    return table(["", "As they are", "Rendered canonically"], rows, kind="narrow")


def _scores(checkup: Checkup) -> str:
    if checkup.score_mean is None:
        return ""
    stored = stored_scores(checkup)
    told = pairs([("Mean", f"{checkup.score_mean:.3f}"), *([(stored.name, _told(stored))] if stored else [])])
    if not checkup.lowest:
        return told
    rows = [
        (shown_place(row.where, checkup.path), [f"{row.score:.3f}", breakable(row.reason or "accepted")])
        for row in checkup.lowest
    ]
    return told + "<h3>The lowest</h3>" + table(["Where", "Score", "Rejected for"], rows)


def _lengths(checkup: Checkup) -> str:
    lengths = checkup.lengths
    if lengths is None:
        missing = checkup.lengths_missing
        return f"<p>Not counted: {for_page(missing, longest=None)}</p>" if missing else ""
    rows = [
        (
            f"{limit:,}",
            [
                f"{cut:,}" if cut else "none",
                _share(cut, lengths.rows) if cut else "",
                '<b class="passed">smallest that cuts none</b>' if limit == lengths.longest else "",
            ],
        )
        for limit, cut in length_rows(lengths)
    ]
    return f"<p>{for_page(length_summary(lengths))}, as {for_page(lengths.base)} counts them.</p>" + table(
        ["--max-seq-len", "Rows cut", "", ""], rows
    )


def _target(checkup: Checkup) -> str:
    line = missing_line(checkup)
    if line is None:
        return ""
    told = pairs([("Target", f"{checkup.target:,} rows"), (line.name, _told(line))])
    if line.grave and checkup.missing_command:
        told += f"<h3>What gets them</h3><pre>{for_page(checkup.missing_command, longest=None)}</pre>"
    return told


def _method(checkup: Checkup) -> str:
    contract = checkup.contract
    given = [
        ("File", f'<span class="path">{for_page(checkup.path, longest=None)}</span>'),
        ("Digest", f"<code>{checkup.digest}</code>"),
        (
            "Prompt contract",
            f"{for_page(contract.role)}/{for_page(contract.name)}, answers in the form "
            f"{for_page(contract.output_format)}, <code>{contract.digest}</code>",
        ),
    ]
    for file in checkup.held_out:
        told = f'<span class="path">{for_page(file.path, longest=None)}</span>, {many(file.rows, "row")}'
        given.append(("Held-out file", f"{told}, <code>{file.digest}</code>"))
    return pairs(given)
