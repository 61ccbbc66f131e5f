import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import numpy as reference

from po_distill.errors import WeightsError
from po_distill.weights.safetensors_file import SafetensorsWriter, TensorFiles, read_header

tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(np.float16, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(tensors)
def test_what_the_writer_writes_the_safetensors_package_reads(values):
    file = io.BytesIO()
    writer = SafetensorsWriter(file, {name: value.shape for name, value in values.items()})
    for name, value in values.items():
        writer.begin(name)
        for row in value:
            writer.write(row)
    writer.finish()
    read = reference.load(file.getvalue())
    assert {name: (value.shape, value.tobytes()) for name, value in read.items()} == {
        name: (value.shape, value.tobytes()) for name, value in values.items()
    }


def test_bfloat16_comes_as_the_float32_of_the_same_value(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    value = torch.tensor([[1.0, -2.5, 3e38, 1e-40]], dtype=torch.bfloat16)
    save_file({"w": value}, tmp_path / "w.safetensors")
    with TensorFiles(read_header(tmp_path / "w.safetensors")) as files:
        assert np.array_equal(files.float32("w"), value.float().numpy())


def test_integers_are_refused_as_weights(tmp_path):
    reference.save_file({"w": np.ones(4, np.int32)}, tmp_path / "w.safetensors")
    with (
        TensorFiles(read_header(tmp_path / "w.safetensors")) as files,
        pytest.raises(WeightsError, match="w is stored"),
    ):
        files.float32("w")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_truncated_file_is_refused(tmp_path_factory, data):
    whole = reference.save({"w": np.arange(40, dtype=np.float32)})
    path = tmp_path_factory.mktemp("cut") / "w.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_header(path)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_header_of_any_json_is_read_or_refused_but_never_crashes(tmp_path_factory, value):
    text = json.dumps({"w": value} if not isinstance(value, dict) else value).encode()
    path = tmp_path_factory.mktemp("odd") / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    try:
        read_header(path)
    except WeightsError as error:
        assert str(path) in error.problem


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F8", "shape": [2], "data_offsets": [0, 2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]},
    ],
)
def test_a_malformed_entry_names_its_tensor(tmp_path, entry):
    text = json.dumps({"weird.weight": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    with pytest.raises(WeightsError, match=r"weird\.weight"):
        read_header(path)
