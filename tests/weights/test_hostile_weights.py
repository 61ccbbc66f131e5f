"""Weight files that are broken in every way we know: each is read as its writer meant it, or refused by name, soon."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hostile_gguf import array, good_gguf, text
from hostile_weights import BASE_SHAPES, Mutation, mutations, safetensors_bytes, write_adapter, write_base
from po_distill.errors import PODistillError
from po_distill.records import InspectedTensor, WeightsInspection
from po_distill.weights.checkpoint import read_json, read_tensor_infos
from po_distill.weights.gguf_file import read_gguf_head
from po_distill.weights.inspection import inspect_weights
from po_distill.weights.lora_adapter import plan_merge, read_adapter
from po_distill.weights.safetensors_file import TensorFiles, read_header

MUTATED = int(os.environ.get("PO_DISTILL_MUTATED_WEIGHTS", "300"))
MOST_S = 5.0  # of processor time for one file
ENOUGH = 2**60


# --- what readers say -----------------------------------------------------------------------------


def outcome(read: Any, *arguments: Any) -> tuple[Any, PODistillError | None]:
    """What a reader gave, or its error; every other exception fails the test."""
    try:
        return read(*arguments), None
    except PODistillError as error:
        return None, error


def merged(adapter: Path, base: Path) -> Any:
    """The merge's plan for an adapter and a base, read as the merge reads them."""
    with TensorFiles(read_tensor_infos(base)) as of_base, read_adapter(adapter) as of_adapter:
        return plan_merge(adapter, of_adapter, of_base, read_json(base / "config.json"))


def check_refusal(error: PODistillError, path: Path) -> None:
    """The file is named, and the message can be shown: one line, without control characters, not endless."""
    told = str(error)
    assert str(path) in error.problem, told
    assert told.isprintable() and len(told) < 1_500, told
    assert error.fix


def check_read_alike(mutation: Mutation, found: WeightsInspection) -> None:
    """What was read is what the packages of the formats read."""
    files = {tensor.file for tensor in found.tensors}
    if mutation.kind == "gguf":
        head = read_gguf_head(mutation.path)
        tensors = {t.name: (t.shape, t.type, t.begin, t.end) for t in head.tensors.values()}
        values = {key: repr(value) for key, value in head.values.items() if isinstance(value, int | float)}
        assert (tensors, list(head.values), values) == by_the_gguf_package(mutation.path)
        assert described(found.tensors) == {name: seen[:2] for name, seen in tensors.items()}
    elif mutation.path.is_file():
        assert described(found.tensors) == by_the_safetensors_package(mutation.path)
    else:
        read = [by_the_safetensors_package(mutation.path / name) for name in sorted(files)]
        assert described(found.tensors) == {name: seen for tensors in read for name, seen in tensors.items()}


def described(tensors: tuple[InspectedTensor, ...]) -> dict[str, Any]:
    return {tensor.name: (tensor.shape, tensor.type) for tensor in tensors}


def by_the_safetensors_package(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (tuple(found.get_shape()), found.get_dtype()) for name, found in slices.items()}


def by_the_gguf_package(path: Path) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """(tensors, keys, numbers by key)."""
    from gguf import GGUFReader

    read = GGUFReader(path)
    fields = {key: field for key, field in read.fields.items() if not key.startswith("GGUF.")}
    numbers = {
        key: repr(field.contents()) for key, field in fields.items() if field.types[0].name not in ("STRING", "ARRAY")
    }
    tensors = {
        t.name: (
            tuple(int(n) for n in reversed(t.shape)),
            t.tensor_type.name,
            t.data_offset,
            t.data_offset + int(t.n_bytes),
        )
        for t in read.tensors
    }
    return tensors, list(fields), numbers


def check_values_alike(path: Path) -> None:
    """The values that the merge reads are those that the safetensors package reads."""
    from safetensors import safe_open

    with TensorFiles(read_header(path)) as ours, safe_open(path, framework="numpy") as theirs:
        for name, info in ours.infos.items():
            if info.dtype != "BF16":
                expected = theirs.get_tensor(name)
                assert (ours.stored(name).shape, ours.stored(name).tobytes()) == (expected.shape, expected.tobytes())


# --- mutated files --------------------------------------------------------------------------------


def test_every_mutated_file_is_read_alike_or_refused_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("gguf")
    base, adapter = tmp_path / "good_base", tmp_path / "good_adapter"
    write_base(base)
    write_adapter(adapter)
    outcomes: Counter[tuple[str, str]] = Counter()
    reasons = set()
    for mutation in mutations(MUTATED, tmp_path):
        path = mutation.path
        started = time.process_time()
        found, error = outcome(inspect_weights, path)
        if mutation.kind == "adapter":
            plan, refusal = outcome(merged, path, base)
        elif mutation.kind == "checkpoint":
            plan, refusal = outcome(merged, adapter, path)
            _, broken = outcome(read_tensor_infos, path)
            assert broken is None or error is not None
        else:
            plan, refusal = outcome(read_header if mutation.kind == "safetensors" else read_gguf_head, path)
        assert time.process_time() - started < MOST_S, mutation
        for refused in (error, refusal):
            if refused is not None:
                # A tensor that the other side lacks is told of by the adapter's name.
                named = adapter if mutation.kind == "checkpoint" and str(adapter) in refused.problem else path
                check_refusal(refused, named)
        if error is None:
            check_read_alike(mutation, found)
        if mutation.kind == "safetensors" and refusal is None:
            check_values_alike(path)
        if error is not None and mutation.kind != "checkpoint":
            assert refusal is not None, error  # what cannot be looked at is not merged
        reasons.add(str(refusal or error).replace(str(tmp_path), "")[:40])
        outcomes[mutation.kind, _told(error, refusal, plan)] += 1
    print(f"{MUTATED} mutated files: {dict(sorted(outcomes.items()))}, {len(reasons)} beginnings of reasons")
    assert sum(outcomes.values()) == MUTATED
    for kind in ("safetensors", "gguf", "checkpoint", "adapter"):
        both = [count for (of, told), count in outcomes.items() if of == kind and told != "refused"]
        assert outcomes[kind, "refused"] > 10 and sum(both) > 3, outcomes


def _told(error: PODistillError | None, refusal: PODistillError | None, plan: Any) -> str:
    if error is not None:
        return "refused"
    return "read" if refusal is None and plan is not None else "inspected, not merged"


# --- files that declare more than there is --------------------------------------------------------

_SMALL = good_gguf()


def _gguf(**changes: Any) -> bytes:
    return bytes(dataclasses.replace(_SMALL, **changes))[:200]


def _entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


BOMBS: dict[str, bytes] = {
    "count of tensors.gguf": _gguf(tensor_count=ENOUGH),
    "count of keys.gguf": _gguf(key_count=ENOUGH),
    "length of a key.gguf": _gguf(keys=((text(b"k", ENOUGH), 4, b"\0" * 4),)),
    "length of a text.gguf": _gguf(keys=((text("k"), 8, text(b"v", ENOUGH)),)),
    "array of bytes.gguf": _gguf(keys=((text("k"), 9, array(0, [b"\0"], ENOUGH)),)),
    "array of texts.gguf": _gguf(keys=((text("k"), 9, array(8, [text("v")], ENOUGH)),)),
    "array of arrays.gguf": _gguf(keys=((text("k"), 9, array(9, [array(9, [], ENOUGH)], ENOUGH)),)),
    "shape.gguf": _gguf(keys=(), tensors=((text("w"), (32, ENOUGH), 2, 0),)),
    "offset.gguf": _gguf(keys=(), tensors=((text("w"), (32,), 2, ENOUGH),)),
    "length of the header.safetensors": (ENOUGH).to_bytes(8, "little") + b'{"w":' + b" " * 150,
    "shape.safetensors": safetensors_bytes(_entry(shape=[ENOUGH]), b"\0" * 4),
    "shape and offsets.safetensors": safetensors_bytes(
        _entry(shape=[ENOUGH // 4], data_offsets=[0, ENOUGH]), b"\0" * 4
    ),
    "begin.safetensors": safetensors_bytes(_entry(data_offsets=[ENOUGH, ENOUGH + 4]), b"\0" * 4),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_small_file_that_declares_2_to_the_60_elements_is_refused_without_memory_for_them(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    assert path.stat().st_size <= 200
    outcome(inspect_weights, path)  # what is imported and cached on the way is there by now
    tracemalloc.start()
    try:
        _, error = outcome(inspect_weights, path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error is not None
    check_refusal(error, path)
    assert peak_bytes < 300_000


def test_such_files_are_refused_where_the_system_gives_no_more_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    assert resource.RLIMIT_AS
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    code = """
import resource, sys
from pathlib import Path
from po_distill.errors import WeightsError
from po_distill.weights.inspection import inspect_weights
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 32_000_000, used + 32_000_000))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        inspect_weights(path)
    except WeightsError:
        print(path.name)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc on this system")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == sorted(BOMBS), done.stderr


# --- what could hang ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    found, error = outcome(inspect_weights, tmp_path)
    if name == "chat_template.jinja":
        assert found.template == "{{ '[INST]' }}"  # it is no file, so it is not there
    elif name == "tokenizer.json":
        assert found.tokenizer is None
    else:
        assert error is not None
        check_refusal(error, tmp_path)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", "(q_|q_)" * 40 + "x", ".*" * 40 + "x", "(?=.*)*q", "((((q?)*)*)*)*x"]
)
def test_a_pattern_that_would_be_matched_for_ever_is_refused_by_name(pattern: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {pattern: 2}}))
    started = time.process_time()
    for _, error in (outcome(merged, tmp_path / "adapter", tmp_path / "base"), outcome(inspect_weights, path.parent)):
        assert error is not None and "rank_pattern" in error.problem
        check_refusal(error, path)
    assert time.process_time() - started < MOST_S


@pytest.mark.parametrize(
    "pattern", [r"layers\.\d+\.self_attn\.q_proj", "layers.(0|1).self_attn.q_proj", ".*self_attn.*"]
)
def test_patterns_as_people_write_them_are_matched(pattern: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "alpha_pattern": {pattern: 16}}))
    plan = merged(tmp_path / "adapter", tmp_path / "base")
    assert plan.updates["model.layers.1.self_attn.q_proj.weight"].scale == 8.0


# --- links ----------------------------------------------------------------------------------------


def test_a_hub_cache_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    write_base(blobs)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    assert read_tensor_infos(snapshot).keys() == BASE_SHAPES.keys()
    assert {tensor.name for tensor in inspect_weights(snapshot).tensors} == BASE_SHAPES.keys()


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", ".", "model.safetensors"])
def test_a_link_to_what_is_no_file_is_refused(target: str, tmp_path: Path) -> None:
    if target.startswith("/") and not Path(target).exists():
        pytest.skip("no devices on this system")
    write_base(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(target)
    (tmp_path / "model.safetensors.index.json").unlink()
    for read in (inspect_weights, read_tensor_infos):
        _, error = outcome(read, tmp_path)
        assert error is not None
        check_refusal(error, tmp_path)
