"""What importing and asking for help may cost."""

import subprocess
import sys

import pytest

import po_distill

HEAVY = ("torch", "transformers", "google", "dspy", "xllamacpp", "peft", "trl", "numpy", "datasets", "matplotlib")

_PROBE = """
import runpy, sys
before = set(sys.modules)  # a package may put its namespace there whenever Python starts
sys.argv = ["po-distill", *{arguments!r}]
try:
    {statement}
except SystemExit:
    pass
loaded = {{name for name in sys.modules if name not in before}}
print([heavy for heavy in {heavy!r} if any(name == heavy or name.startswith(heavy + ".") for name in loaded)])
"""


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        ("import po_distill", []),
        ("from po_distill.cli import main; main()", ["--help"]),
        ("from po_distill.cli import main; main()", ["train", "--help"]),
        ("from po_distill.cli import main; main()", ["plugins", "--json"]),
        ("import po_distill.dspy", []),
        ("from po_distill import Teacher, DatasetBuilder, product_owner_metric, Concept", []),
    ],
)
def test_nothing_heavy_is_imported(statement: str, arguments: list[str]) -> None:
    code = _PROBE.format(statement=statement, arguments=arguments, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_public_name_resolves() -> None:
    assert {"Teacher", "DatasetBuilder", "LoRATrainer", "Merger", "Packager", "Evaluator", "distill"} <= set(
        dir(po_distill)
    )
    for name in po_distill.__all__:
        assert getattr(po_distill, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        po_distill.Nothing  # noqa: B018
