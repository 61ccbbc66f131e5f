"""A checkup on a terminal: the verdict first, bad news marked, what is well in few lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from pydantic import JsonValue
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from po_distill.records import Checkup, DatasetChange, RuleFinding
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
    score_bins,
    shown_place,
    state_of,
    stored_scores,
    variety,
    what_is_left,
)
from po_distill.reporting.foreign_text import for_terminal

_STATES = {"broken": "red", "allowed": "yellow", "kept": "green"}
_BAR_WIDTH = 30  # characters of the longest bar
_PLACES_SHOWN = 5


def tell_checkup(checkup: Checkup, console: Console | None = None) -> None:
    """Print what the doctor found. Bad news is red and has a ! before it, for those who see no colour."""
    console = console or Console(highlight=False)
    _tell_verdict(console, checkup)
    _tell_rules(console, checkup)
    _tell_rows(console, checkup)
    _tell_classes(console, checkup)
    _tell_lines(console, "Prompts", sameness(checkup))
    _tell_lines(console, "Variety", variety(checkup))
    _tell_facts(console, checkup)
    _tell_scores(console, checkup)
    _tell_lengths(console, checkup)
    _tell_target(console, checkup)
    console.print(Text.assemble("\nThe dataset is ", _verdict(checkup), "."))


def tell_change(change: DatasetChange, console: Console | None = None) -> None:
    """Print how one dataset differs from another."""
    console = console or Console(highlight=False)
    console.print(_text(f"{change.before} -> {change.after}", "bold", longest=None))
    if not _differs(change):
        console.print(Text.assemble(("No difference", "green"), f": {many(change.rows_after, 'row')} in both."))
        return
    console.print(
        _text(f"{many(change.rows_before, 'row')} before, {change.rows_after:,} after, {change.kept:,} in both")
    )
    grid = _grid(2)
    told = (
        ("added", many(change.added, "row") + " about new prompts"),
        ("removed", many(change.removed, "row") + " about prompts that are gone"),
        ("changed", many(change.changed, "prompt") + " with another answer"),
        ("moved", many(change.moved, "prompt") + " in another split"),
    )
    for name, value in told:
        if getattr(change, name):
            examples = [for_terminal(concept) for concept in change.examples.get(name, ())]
            such = f": {', '.join(examples)}" if examples else ""
            _add(grid, Line(name, value + such, grave=name == "moved"))
    _indented(console, grid)
    _tell_shift(console, "Class", change.labels)
    _tell_shift(console, "Split", {str(name): counts for name, counts in change.splits.items()})
    settings = [Line(name, f"{_json(old)} -> {_json(new)}") for name, (old, new) in change.settings.items()]
    if change.contract_changed:
        settings.append(Line("prompt contract", "another one: train and evaluate under the new one", grave=True))
    _tell_lines(console, "Settings", settings)


def _tell_verdict(console: Console, checkup: Checkup) -> None:
    console.print(Text.assemble("The dataset is ", _verdict(checkup), "."))
    told = f"{checkup.path}, role {checkup.role}, {many(checkup.rows, 'row')} looked at in {checkup.duration_s:.1f} s"
    console.print(_text(told, "dim", longest=None))


def _verdict(checkup: Checkup) -> Text:
    return _text(headline(checkup), "bold green" if checkup.fit else "bold red", longest=None)


def _tell_rules(console: Console, checkup: Checkup) -> None:
    """Rules that are not kept with all that is known of them, the others by name."""
    rules = ordered_rules(checkup)
    if not rules:
        return
    _title(console, "Rules")
    grid = _grid(2)
    for rule in rules:
        state = state_of(rule)
        if state != "kept":
            grid.add_row(Text(state, style=_STATES[state]), _rule(rule, checkup))
    kept = [rule.rule for rule in rules if rule.kept]
    if kept:
        grid.add_row(Text("kept", style=_STATES["kept"]), _text(", ".join(kept), longest=None))
    _indented(console, grid)
    _tell_remedies(console, checkup)


def _tell_remedies(console: Console, checkup: Checkup) -> None:
    """What to do. Not wrapped: commands are there to be copied."""
    found = remedies(checkup)
    if found:
        _title(console, "What to do")
    for rules, fix in found:
        _indented(console, _text(f"{rules}:", longest=None))
        console.print(Text.assemble("    ", (for_terminal(fix, None), "cyan")), soft_wrap=True)


def _rule(rule: RuleFinding, checkup: Checkup) -> Text:
    told = Text.assemble((for_terminal(rule.rule), "bold"), f", {rule.rows:,}: ", for_terminal(rule.detail, None))
    places = [for_terminal(shown_place(place, checkup.path)) for place in rule.where[:_PLACES_SHOWN]]
    if places:
        told.append(f"\nFirst: {'; '.join(places)}", style="dim")
    return told


def _tell_rows(console: Console, checkup: Checkup) -> None:
    rejected = sum(checkup.rejected.values())
    _title(console, "Rows", f"{checkup.rows:,} = {checkup.accepted:,} accepted + {rejected:,} rejected")
    table = _table("rejected for", "rows", "", "rows that show it")
    for reason, refused, shown in reasons(checkup):
        table.add_row(
            _text(reason),
            f"{refused:,}" if refused else "–",
            percent(refused, checkup.rows) if refused else "–",
            f"{shown:,}",
        )
    _indented(console, table)
    built = f"Built now, a dataset holds {many(checkup.left, 'row')}: {what_is_left(checkup)}."
    _indented(console, _text(built))


def _tell_classes(console: Console, checkup: Checkup) -> None:
    found = class_rows(checkup)
    if not found:
        return
    _title(console, "Classes")
    table = _table("class", "rows", "", "accepted", "")
    for label, rows, accepted, rare in found:
        table.add_row(
            _text(f"! {label} (rare)" if rare else label),
            f"{rows:,}",
            percent(rows, checkup.rows),
            f"{accepted:,}",
            percent(accepted, checkup.accepted),
            style="red" if rare else "",
        )
    _indented(console, table)


def _tell_facts(console: Console, checkup: Checkup) -> None:
    if not checkup.facts:
        return
    _title(console, "In the answers")
    rendered = any(fact.rendered is not None for fact in checkup.facts)
    table = _table("", "as they are", *(["rendered canonically"] if rendered else []))
    for fact in checkup.facts:
        after = "–" if fact.rendered is None else f"{fact.rendered:,}"
        table.add_row(_text(fact.name), f"{fact.count:,}", *([after] if rendered else []))
    _indented(console, table)


def _tell_scores(console: Console, checkup: Checkup) -> None:
    if checkup.score_mean is None:
        return
    _title(console, "Scores", f"mean {checkup.score_mean:.3f}, of the answers as they stand")
    bins = score_bins(checkup)
    most = max((rows for *_, rows in bins), default=1)
    block = "#" if console.options.ascii_only else "█"
    table = _table("", "", "")
    for low, high, rows in bins:
        bar = block * max(1, round(_BAR_WIDTH * rows / most))
        table.add_row(f"{low:.2f} to {high:.2f}", f"{rows:,}", Text(bar, style="blue"))
    table.columns[2].justify = "left"
    _indented(console, table)
    if checkup.lowest:
        _indented(console, Text("The lowest"))
        table = _table("", "", "")
        for row in checkup.lowest:
            place = for_terminal(shown_place(row.where, checkup.path))
            table.add_row(f"{row.score:.3f}", Text(place), _text(row.reason or "accepted"))
        table.columns[1].justify = table.columns[2].justify = "left"
        _indented(console, table)
    stored = stored_scores(checkup)
    _print_lines(console, [stored] if stored else [])


def _tell_lengths(console: Console, checkup: Checkup) -> None:
    lengths = checkup.lengths
    if lengths is None:
        if checkup.lengths_missing:
            _tell_lines(console, "Tokens", [Line("Not counted", checkup.lengths_missing)])
        return
    _title(console, "Tokens", f"as {for_terminal(lengths.base)} counts them")
    _indented(console, _text(length_summary(lengths)))
    table = _table("--max-seq-len", "rows cut", "", "")
    for limit, cut in length_rows(lengths):
        note = "the smallest that cuts none" if limit == lengths.longest else ""
        table.add_row(f"{limit:,}", f"{cut:,}" if cut else "none", percent(cut, lengths.rows), note)
    table.columns[3].justify = "left"
    _indented(console, table)


def _tell_target(console: Console, checkup: Checkup) -> None:
    line = missing_line(checkup)
    if line is None:
        return
    _title(console, "Target", f"{checkup.target:,} rows")
    _print_lines(console, [line])
    if line.grave and checkup.missing_command:
        # Not wrapped: it is there to be copied.
        console.print(_text(f"Next: {checkup.missing_command}", "bold", longest=None), soft_wrap=True)


def _tell_shift(console: Console, what: str, counts: dict[str, tuple[int, int]]) -> None:
    if not any(before != after for before, after in counts.values()):
        return
    console.print()
    table = _table(what, "before", "after", "difference")
    for name, (before, after) in counts.items():
        table.add_row(_text(name), f"{before:,}", f"{after:,}", f"{after - before:+,}" if after != before else "–")
    _indented(console, table)


def _tell_lines(console: Console, title: str, lines: Sequence[Line]) -> None:
    if lines:
        _title(console, title)
        _print_lines(console, lines)


def _print_lines(console: Console, lines: Iterable[Line]) -> None:
    grid = _grid(2)
    for line in lines:
        _add(grid, line)
    _indented(console, grid)


def _add(grid: Table, line: Line) -> None:
    style = "red" if line.grave else ""
    grid.add_row(_text(f"{'! ' if line.grave else ''}{line.name}"), _text(line.value, style, longest=None))


def _title(console: Console, title: str, rest: str = "") -> None:
    console.print(Text.assemble("\n", (title, "bold"), f": {rest}" if rest else ""))


def _grid(columns: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(columns):
        grid.add_column()
    return grid


def _table(first: str, *others: str) -> Table:
    """A table without lines. Each column needs a text in some row: rich cuts the others where one has none."""
    table = Table(box=None, show_header=any((first, *others)), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _indented(console: Console, shown: Table | Text) -> None:
    if isinstance(shown, Text) or shown.row_count:
        console.print(Padding(shown, (0, 0, 0, 2), expand=False))


def _text(value: str, style: str = "", longest: int | None = 160) -> Text:
    return Text(for_terminal(value, longest), style=style)


def _differs(change: DatasetChange) -> bool:
    rows = change.added or change.removed or change.changed or change.moved or change.rows_before != change.rows_after
    return bool(rows or change.settings or change.contract_changed)


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
