"""A package goes to an Ollama server, step by step, such that a kill at any step leaves what was there answering.

The model is made under the name `<name>:<tag>-unproven`, proven there, and only then copied to `<name>:<tag>`. The tag
is content-addressed, so what has such a name is proven, and what a killed run left unproven says so. The alias, which
is what callers ask for, is moved last. Copies cost nothing: a name is a small file that lists digests.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from po_distill import artifacts
from po_distill.errors import InputError, ProviderError
from po_distill.ollama_names import ModelName, read_model_name, split_model_name
from po_distill.ollama_server import MissingModelError, OllamaServer, ServerModel, Spoken
from po_distill.package_proof import PackageProof, UnprovenError
from po_distill.progress import say
from po_distill.records import InstalledPackage, OllamaPackage

PACKAGE_STAGE = "package"
UNPROVEN = "-unproven"  # behind a tag
KEPT = "kept-"  # before the digest of what an alias stood for, where that had no other name
_FORGOTTEN = timedelta(days=1)  # no install takes so long between making and proving


def read_package(folder: Path | str) -> OllamaPackage:
    """The package that lies in a folder, wherever the folder lies by now. Raises InputError."""
    manifest = artifacts.read_manifest(folder)
    if manifest is None or PACKAGE_STAGE not in manifest.stages:
        raise InputError(f"{folder} holds no package.", f"Run: po-distill package --model {folder}")
    where = f"{Path(folder) / artifacts.MANIFEST_NAME}, stage {PACKAGE_STAGE}"
    package = artifacts.parse_record(manifest.stages[PACKAGE_STAGE], OllamaPackage, where)
    return package.model_copy(update={"path": str(folder)})


def install_package(server: OllamaServer, package: OllamaPackage) -> InstalledPackage:
    """Make the package's model on the server, prove it, and let the package's name stand for it.

    A tag that is there is proven, never made again. Raises UnprovenError where the model is not what was packaged: what
    this run made is removed then. Raises ProviderError where the server cannot be asked: the same call goes on from
    there.
    """
    proof = PackageProof(package)
    alias = read_model_name(package.name)
    name = ModelName(alias.stem, package.tag)
    spoken, made = _proven(server, package, proof, name)
    removed = _clear(server, name)
    model = server.find(str(name))
    if model is None:
        raise _vanished(name)
    kept = _move_alias(server, alias, model)
    return InstalledPackage(
        name=model.name,
        alias=str(alias),
        server=server.url,
        digest=f"sha256:{model.digest}",
        made=made,
        kept=kept,
        removed=removed,
        prompt_tokens=spoken.prompt_tokens,
        answer_tokens=spoken.answer_tokens,
        latency_s=round(spoken.latency_s, 3),
    )


# --- the tag --------------------------------------------------------------------------------------


def _proven(server: OllamaServer, package: OllamaPackage, proof: PackageProof, name: ModelName) -> tuple[Spoken, bool]:
    """(the answer that proves the model under its tag, whether this run made it)."""
    if server.find(str(name)):
        return _prove_standing(server, proof, name), False
    unproven = f"{name}{UNPROVEN}"
    if server.find(unproven) is None:
        _make(server, package, unproven)
    say(f"{name}: is it what was packaged?")
    try:
        spoken = proof.hold(server, unproven)
        if server.find(str(name)) is None:
            server.copy(unproven, str(name))
    except MissingModelError as error:
        # Another process that installs the same package was quicker, and cleared up behind itself.
        if server.find(str(name)) is None:
            raise _vanished(name) from error
        return _prove_standing(server, proof, name), False
    except UnprovenError:
        with contextlib.suppress(ProviderError):  # what it is not goes before that it cannot be removed
            server.delete(unproven)
        raise
    return spoken, True


def _prove_standing(server: OllamaServer, proof: PackageProof, name: ModelName) -> Spoken:
    say(f"{name} is there; is it what was packaged?")
    try:
        return proof.hold(server, str(name))
    except UnprovenError as error:
        error.fix = f"Remove it: po-distill package remove {name}; then run the same command again."
        raise


def _make(server: OllamaServer, package: OllamaPackage, name: str) -> None:
    gguf = Path(package.path) / Path(package.gguf.path).name
    if not gguf.is_file() or gguf.stat().st_size != package.gguf.size_bytes:
        what = "is not the file that was packaged" if gguf.is_file() else "does not exist"
        raise InputError(f"{gguf} {what}.", f"Package the model again: po-distill package --model {package.path}")
    server.upload(gguf, package.gguf.digest)
    server.create(
        name,
        {gguf.name: package.gguf.digest},
        template=package.template,
        system=package.system,
        parameters=package.parameters,
        license=package.license,
    )


def _vanished(name: ModelName) -> ProviderError:
    return ProviderError(
        f"{name} was removed by another process while it was installed.",
        "Run the same command again.",
        fault="unavailable",
    )


# --- what is left, and the alias ------------------------------------------------------------------


def _clear(server: OllamaServer, name: ModelName) -> tuple[str, ...]:
    """Remove this package's unproven name, and those that killed runs of other packages of the name left long ago."""
    own = f"{name}{UNPROVEN}".lower()
    removed = []
    for model in server.models():
        is_ours, is_sibling = model.name.lower() == own, split_model_name(model.name).stem.lower() == name.stem.lower()
        if is_ours or (is_sibling and model.name.endswith(UNPROVEN) and _is_forgotten(model)):
            with contextlib.suppress(MissingModelError):
                server.delete(model.name)
                removed += [] if is_ours else [model.name]
    return tuple(removed)


def _is_forgotten(model: ServerModel) -> bool:
    return model.modified_at is not None and datetime.now(UTC) - model.modified_at > _FORGOTTEN


def _move_alias(server: OllamaServer, alias: ModelName, model: ServerModel) -> str | None:
    """Let the alias stand for the model; the name under which its former one is kept, where it had no other."""
    models = server.models()
    former = next((other for other in models if other.name.lower() == str(alias).lower()), None)
    if former is not None and former.digest == model.digest:
        return None
    kept = None
    if former is not None and not any(other.digest == former.digest for other in models if other != former):
        kept = f"{alias.stem}:{KEPT}{former.digest[:12]}"
        server.copy(former.name, kept)
    server.copy(model.name, str(alias))
    return kept
