"""DSPy as the tests of its door need it: no answers of earlier runs, and nothing left configured."""

import pytest

dspy = pytest.importorskip("dspy")


@pytest.fixture(autouse=True)
def _fresh_dspy():
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False)
    with dspy.context(lm=None, adapter=None):
        yield
    dspy.cache = before
