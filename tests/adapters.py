"""Adapters with the trainer's note beside them, and merged weights held against others."""

import numpy as np

from po_distill.artifacts import digest_file, write_json
from po_distill.records import Adapter, PromptContract
from po_distill.weights.checkpoint import locate

CONTRACT = PromptContract(role="haiku", name="plain", system="", template="{concept}", output_format="1")


def record(version, base, **changes):
    """What the trainer notes of the adapter in a version folder, written there."""
    path = version / "adapter" / "adapter_model.safetensors"
    fields = {
        "path": str(version / "adapter"),
        "base_name": str(base),
        "base_digest": locate(str(base)).digest,
        "contract": CONTRACT,
        "digest": digest_file(path),
    }
    adapter = Adapter(**{**fields, **changes})
    write_json(version / "adapter" / "po_distill.json", adapter)
    return adapter


def assert_equal_within_a_rounding(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # The order of the float32 sum may differ, so a value near a tie may round to the neighbour.
        step = np.spacing(np.abs(value.numpy()).astype(np.float16)).astype(np.float32)
        assert (np.abs(ours[name].float().numpy() - value.float().numpy()) <= step).all(), name
