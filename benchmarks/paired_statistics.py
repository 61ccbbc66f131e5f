"""How often the evaluation's interval holds the truth, and how often its gate passes what lies at the margin.

`python benchmarks/paired_statistics.py` simulates studies of planted differences, setting by setting, and prints for
the first 200 and for all of them: the share of studies whose 95 % interval holds the true mean difference, and the
share in which a candidate that is worse by exactly the margin is called `not worse` or `better`. Over 200 studies
chance alone moves a coverage of 95 % by 3 % either way, so both are printed, and of the false passes the worst of all
the runs of 200 as well. What passes is decided as the evaluation decides, at DECIDING_LEVEL. `rule` is what passes the
gate's rule `unseen_failures`, set to 0.05, too. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from po_distill.paired_comparison import DECIDING_LEVEL, FEWEST, bca, intervals, unseen_share

Study = NDArray[np.float64]
SCORE = 0.9  # of a valid answer, in the settings with invalid ones
FAILED = 0.5  # a larger difference is an invalid answer's there
UNSEEN = 0.05  # what the rule is set to


class Setting(NamedTuple):
    """How differences are drawn, (studies, cases), and what is known of the truth: None is measured."""

    name: str
    draw: Callable[[np.random.Generator, int, int], Study]
    mean: float | None
    fewest: int = 0  # of fewer cases more than one study in twenty shows no failure at all: told, not promised


def normal(rng: np.random.Generator, studies: int, cases: int) -> Study:
    return rng.normal(0.0, 0.1, (studies, cases))


def skewed(rng: np.random.Generator, studies: int, cases: int) -> Study:
    return 0.1 * (1.0 - rng.exponential(1.0, (studies, cases)))


def tied(rng: np.random.Generator, studies: int, cases: int) -> Study:
    """As the schema part moves: most differences are 0, the others a step or two."""
    return rng.choice(np.array([0, 0, 0, 0, -2, -1, 1]) / 16, (studies, cases))


def lossy(rng: np.random.Generator, studies: int, cases: int) -> Study:
    """Most answers as good as the teacher's, some much worse."""
    return -rng.beta(0.3, 6.0, (studies, cases))


def with_invalid(share: float) -> Callable[[np.random.Generator, int, int], Study]:
    """Scores near 0.9 of which a share counts 0: of the reference's, and 3 % more of the candidate's."""

    def draw(rng: np.random.Generator, studies: int, cases: int) -> Study:
        reference = np.clip(rng.normal(0.9, 0.05, (studies, cases)), 0, 1)
        candidate = np.clip(reference + rng.normal(0.0, 0.04, (studies, cases)), 0, 1)
        candidate *= rng.random((studies, cases)) >= share + 0.03
        reference *= rng.random((studies, cases)) >= share
        return candidate - reference

    return draw


SETTINGS = (
    Setting("normal", normal, 0.0),
    Setting("skewed", skewed, 0.0),
    Setting("tied", tied, -2 / 112),
    Setting("lossy", lossy, -0.3 / 6.3),
    Setting("invalid_20", with_invalid(0.20), None),
    Setting("invalid_10", with_invalid(0.10), None),
    Setting("invalid_02", with_invalid(0.02), None, fewest=42),
)


@functools.cache
def true_mean(setting: Setting) -> float:
    """The mean that studies try to find; where no formula gives it, over two million cases."""
    if setting.mean is not None:
        return setting.mean
    return float(setting.draw(np.random.default_rng(0), 500, 4_000).mean())


def measure(setting: Setting, cases: int, studies: int, seed: int, resamples: int) -> dict[str, object]:
    """The figures of one setting at one number of cases."""
    rng = np.random.default_rng([seed, cases])
    mean = true_mean(setting)
    drawn = setting.draw(rng, studies, cases)
    costs = np.where((np.abs(drawn) > FAILED).any(axis=1), SCORE, np.nan)
    low, high = intervals(drawn, costs=costs, seed=seed, resamples=resamples)
    plain = bca(drawn, seed=seed, resamples=resamples, widened=False)
    holds = (low <= mean) & (mean <= high)
    # Shifted so that the truth lies at the margin: an interval moves with its data.
    deciding = intervals(drawn, costs=costs, seed=seed, resamples=resamples, level=DECIDING_LEVEL)
    passes = (deciding.low - mean >= 0.0) & (cases >= FEWEST)
    unseen = {failed: unseen_share(failed, cases) for failed in range(cases + 1)}
    gated = passes & np.array([unseen[int(failed)] * SCORE <= UNSEEN for failed in (drawn < -FAILED).sum(axis=1)])
    return {
        "setting": setting.name,
        "cases": cases,
        "true_mean": round(mean, 4),
        "promised": cases >= setting.fewest,
        "coverage_200": float(holds[:200].mean()),
        "coverage": float(holds.mean()),
        "false_pass_200": float(passes[:200].mean()),
        "false_pass_worst_200": max(float(passes[start : start + 200].mean()) for start in range(0, studies, 200)),
        "false_pass": float(passes.mean()),
        "false_pass_rule": float(gated.mean()),
        "coverage_plain_bca": float(((plain.low <= mean) & (mean <= plain.high)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    rows = [
        measure(setting, cases, arguments.studies, arguments.seed, arguments.resamples)
        for setting in SETTINGS
        for cases in (20, 50, 200)
    ]
    promised = [row for row in rows if row["promised"]]
    summary = {
        "studies": arguments.studies,
        "lowest_coverage": min(float(str(row["coverage"])) for row in promised),
        "highest_coverage": max(float(str(row["coverage"])) for row in promised),
        "highest_false_pass": max(float(str(row["false_pass"])) for row in promised),
        "highest_false_pass_rule": max(float(str(row["false_pass_rule"])) for row in rows),
        "highest_false_pass_200": max(float(str(row["false_pass_worst_200"])) for row in promised),
        "seconds": round(time.monotonic() - started, 1),
        "settings": rows,
    }
    if arguments.json:
        print(json.dumps(summary))
        return
    title = f"{'setting':12s} {'n':>4s}  covers: 200  {arguments.studies:>6d}  BCa alone"
    print(f"{title}   false pass: 200  worst   all     rule")
    for row in rows:
        print(
            f"{row['setting']:12s} {row['cases']:4d}       {row['coverage_200']:6.3f}  {row['coverage']:6.3f}"
            f"     {row['coverage_plain_bca']:6.3f}       {row['false_pass_200']:10.3f}"
            f"  {row['false_pass_worst_200']:.3f} {row['false_pass']:6.3f}"
            f"  {row['false_pass_rule']:6.3f}{'' if row['promised'] else '  (rarer than so few cases show)'}"
        )
    print(f"{summary['seconds']} s")


if __name__ == "__main__":
    main()
