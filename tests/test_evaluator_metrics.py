"""Metrics that tests name by their path."""


def lines(example, prediction, trace=None):
    """0.3 for each line."""
    found = prediction["haiku"].get("lines") if isinstance(prediction["haiku"], dict) else None
    return 0.3 * min(len(found), 3) if isinstance(found, list) else 0.0


def constant(example, prediction, trace=None):
    return 0.9


def test_the_metrics_are_what_tests_take_them_for():
    assert (lines({}, {"haiku": {"lines": ["a"]}}), constant({}, {})) == (0.3, 0.9)
