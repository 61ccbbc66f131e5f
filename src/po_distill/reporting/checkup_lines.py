"""What a checkup says, in words and figures, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from po_distill.dataset_rules import rare_classes
from po_distill.records import Checkup, Lengths, RuleFinding
from po_distill.reporting.foreign_text import one_line

State = Literal["broken", "allowed", "kept"]
_MOST_SHOWN = 6  # values of a line; the others are counted


class Line(NamedTuple):
    """One thing that was found. A grave one has to be seen first."""

    name: str
    value: str
    grave: bool = False


class ClassRow(NamedTuple):
    """Rows of one class of the answer."""

    label: str
    rows: int
    accepted: int
    rare: bool  # of the accepted rows too few are of it


def headline(checkup: Checkup) -> str:
    """Fit or not, and by which rules."""
    broken = [rule.rule for rule in checkup.rules if state_of(rule) == "broken"]
    allowed = [rule.rule for rule in checkup.rules if state_of(rule) == "allowed"]
    if not checkup.fit:
        return f"not fit for training: {_are_broken(broken)}"
    return (
        f"fit for training, as you allow it: {_are_broken(allowed)}"
        if allowed
        else "fit for training: every rule is kept"
    )


def state_of(rule: RuleFinding) -> State:
    """What became of a rule."""
    if rule.kept:
        return "kept"
    return "allowed" if rule.allowed else "broken"


def ordered_rules(checkup: Checkup) -> list[RuleFinding]:
    """The rules, those first that the reader has to do something about."""
    order: tuple[State, ...] = ("broken", "allowed", "kept")
    return sorted(checkup.rules, key=lambda rule: order.index(state_of(rule)))


def remedies(checkup: Checkup) -> list[tuple[str, str]]:
    """(rules, what to do about them), once for all rules that it is the remedy of."""
    found: dict[str, list[str]] = {}
    for rule in ordered_rules(checkup):
        if not rule.kept:
            found.setdefault(rule.fix, []).append(rule.rule)
    return [(", ".join(names), fix) for fix, names in found.items()]


def reasons(checkup: Checkup) -> list[tuple[str, int, int]]:
    """(reason, rows rejected for it, rows that show it), the most frequent first.

    The second column adds up to the rejected rows. A row may show several things, and what it shows beside the
    reason it was rejected for stands in the third only.
    """
    names = {*checkup.rejected, *checkup.violations}
    rows = [
        (n, checkup.rejected.get(n, 0), max(checkup.violations.get(n, 0), checkup.rejected.get(n, 0))) for n in names
    ]
    return sorted((row for row in rows if row[2]), key=lambda row: (-row[1], -row[2], row[0]))


def class_rows(checkup: Checkup) -> list[ClassRow]:
    """Every class that an answer has or should have, the most frequent first."""
    rare = rare_classes(checkup.accepted_labels.keys(), checkup.accepted_labels)
    found = [
        ClassRow(label, checkup.labels.get(label, 0), checkup.accepted_labels.get(label, 0), label in rare)
        for label in {*checkup.labels, *checkup.accepted_labels}
    ]
    return sorted(found, key=lambda row: (-row.rows, -row.accepted, row.label))


def sameness(checkup: Checkup) -> list[Line]:
    """Prompts, what is there more than once, what is in held-out files, and in which form."""
    lines = [Line("Prompts", _prompts(checkup))]
    if checkup.contradictory_prompts:
        told = f"{many(checkup.contradictory_prompts, 'prompt')} with answers of different classes"
        lines.append(Line("Contradictions", told, grave=True))
    if checkup.exact_duplicate_rows or checkup.near_duplicate_rows:
        lines.append(Line("Duplicates", _duplicates(checkup)))
    lines.append(_leaks(checkup))
    if checkup.foreign_prompts:
        told = f"{many(checkup.foreign_prompts, 'row')} with a prompt that is not the one of this role"
        lines.append(Line("Foreign prompts", told, grave=True))
    if checkup.not_canonical:
        told = f"{many(checkup.not_canonical, 'accepted row')} not in the canonical form"
        lines.append(Line("Form", told))
    return lines


def variety(checkup: Checkup) -> list[Line]:
    """Tiers, languages, contracts, and how much of it is said again and again."""
    rows = checkup.rows
    lines = [
        Line("Tiers", shares(checkup.tiers, rows)),
        Line("Languages", shares(checkup.languages, rows)),
        Line("Answer forms", shares(checkup.contracts, rows)),
    ]
    if checkup.parts:
        share = percent(checkup.distinct_parts, checkup.parts)
        told = f"{checkup.distinct_parts:,} distinct of {checkup.parts:,} ({share})"
        lines.append(Line("Parts of concepts", told))
    for name, values in checkup.values.items():
        most = max(values.values(), default=0)
        lines.append(Line(f"Values of {name}", shares(values, rows), grave=rows > 1 and most > rows / 2))
    return [line for line in lines if line.value]


def stored_scores(checkup: Checkup) -> Line | None:
    """Whether the scores that the rows bring are right. None where they bring none."""
    if not checkup.stored_scores:
        return None
    told = many(checkup.stored_scores, "row")
    if not checkup.stored_wrong:
        return Line("Stored scores", f"{told}, none off by more than 0.001")
    return Line(
        "Stored scores",
        f"{told}, {checkup.stored_wrong:,} off by more than 0.001, by {checkup.stored_worst:.3f} at the worst",
        grave=True,
    )


def score_bins(checkup: Checkup) -> list[tuple[float, float, int]]:
    """(from, to, rows) of the bins that hold rows, the lowest first."""
    count = max(1, len(checkup.scores))
    return [(n / count, (n + 1) / count, rows) for n, rows in enumerate(checkup.scores) if rows]


def length_rows(lengths: Lengths) -> list[tuple[int, int]]:
    """(max_seq_len, rows it cuts): the usual ones that cut, the smallest that cuts none, and the usual one above it."""
    cutting = [(limit, cut) for limit, cut in sorted(lengths.cut.items()) if cut]
    enough = [(limit, 0) for limit, cut in sorted(lengths.cut.items()) if not cut and limit > lengths.longest]
    return [*cutting, (lengths.longest, 0), *enough[:1]]


def length_summary(lengths: Lengths) -> str:
    """How long the rows are, in tokens."""
    return (
        f"{lengths.shortest:,} to {lengths.longest:,} tokens a row, half of {many(lengths.rows, 'row')} within "
        f"{lengths.median:,}, 95 % within {lengths.p95:,}"
    )


def missing_line(checkup: Checkup) -> Line | None:
    """What the target lacks. None without a target."""
    if checkup.target is None:
        return None
    lacking = {name: count for name, count in sorted(checkup.missing.items()) if count}
    if not lacking:
        return Line("Missing", "nothing")
    by_class = ", ".join(f"{count:,} {name}" for name, count in lacking.items())
    return Line("Missing", f"{many(sum(lacking.values()), 'row')}: {by_class}", grave=True)


def shown_place(where: str, path: str) -> str:
    """A place in the file that was checked, without the file's own path."""
    rest = where.removeprefix(path)
    return rest.lstrip(" ,:") or where if rest != where else where


def many(count: int, noun: str) -> str:
    """1 row, 2 rows, 1,521 rows."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(part: int, whole: int) -> str:
    """A share as a person says it. What is there is never 0 %, and what lacks anything never 100 %."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"


def shares(counts: Mapping[str, int], whole: int) -> str:
    """The most frequent of some counts with their shares, and how many others there are."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{one_line(name, 60)}: {count:,} ({percent(count, whole)})" for name, count in ordered[:_MOST_SHOWN]]
    if len(ordered) > _MOST_SHOWN:
        told.append(f"{many(len(ordered) - _MOST_SHOWN, 'other')}")
    return ", ".join(told)


def _prompts(checkup: Checkup) -> str:
    told = f"{checkup.distinct_prompts:,} distinct in {many(checkup.rows, 'row')}"
    if checkup.repeated_prompts:
        return f"{told}, {checkup.repeated_prompts:,} of them with more than one row"
    return f"{told}, none with more than one row"


def _duplicates(checkup: Checkup) -> str:
    kinds = (
        (checkup.exact_duplicate_rows, "to the letter like an earlier one"),
        (checkup.near_duplicate_rows, "nearly like another"),
    )
    return ", ".join(f"{many(count, 'row')} {kind}" for count, kind in kinds if count)


def _leaks(checkup: Checkup) -> Line:
    if not checkup.held_out and not checkup.leaked_rows:
        return Line("Leaks", "not looked for: no held-out file was given (--held-out)")
    if not checkup.leaked_rows:
        return Line("Leaks", "no row is in a held-out file")
    kinds = (
        (checkup.leaked_exact, "to the letter"),
        (checkup.leaked_normalised, "but for case and punctuation"),
        (checkup.leaked_near, "nearly"),
    )
    told = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    return Line("Leaks", f"{many(checkup.leaked_rows, 'row')} of a held-out file: {told}", grave=True)


def _are_broken(rules: list[str]) -> str:
    return f"{many(len(rules), 'rule')} {'is' if len(rules) == 1 else 'are'} broken ({', '.join(rules)})"


def what_is_left(checkup: Checkup) -> str:
    """What can be said of the rows that a dataset built now would hold."""
    return "one a prompt, " + ("none leaked, " if checkup.held_out else "") + "none near another"
