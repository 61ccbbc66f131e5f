"""A merged model becomes a GGUF and a Modelfile, and a proven model on an Ollama server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from po_distill import artifacts
from po_distill.artifacts import digest_file
from po_distill.base_models import OLLAMA_TEMPLATES, chatml_ollama_template
from po_distill.errors import ArtifactError, InputError, WeightsError
from po_distill.installing import PACKAGE_STAGE as STAGE
from po_distill.installing import install_package, read_package
from po_distill.modelfile import modelfile, unwritten_modelfile
from po_distill.ollama_names import read_model_name
from po_distill.ollama_server import OllamaServer
from po_distill.records import (
    Adapter,
    BaseModelSpec,
    ChatForm,
    GGUFFile,
    InstalledPackage,
    MergedModel,
    OllamaPackage,
    PromptContract,
    Quantization,
)
from po_distill.weights.chat_template import known_form, read_chat_template
from po_distill.weights.checkpoint import digest_checkpoint, end_texts, find_spec, read_config, read_special_texts
from po_distill.weights.gguf import write_gguf
from po_distill.weights.gguf_tokenizer import read_tokenizer

_UNTRAINED_NUM_CTX = 8192  # where it is not known how long the rows were that it was trained on
_CONTEXT_STEP = 1024


class Packager:
    """Packages checkpoints under the Ollama model name `name`.

    `num_ctx` (tokens of context), `temperature` and `num_predict` (the longest answer, in tokens) become parameters of
    the model. Without `num_ctx` the context holds the longest row of the training and an answer, and never more than
    the model was made for.
    """

    def __init__(
        self,
        name: str = "po-student-v1",
        quantization: Quantization = "q4_0",
        *,
        num_ctx: int | None = None,
        temperature: float = 0.4,
        num_predict: int = 4096,
    ) -> None:
        read_model_name(name)
        self.name, self.quantization = name, quantization
        self.num_ctx, self.temperature, self.num_predict = num_ctx, temperature, num_predict

    def package(self, model: MergedModel | Path | str, output: Path | str | None = None) -> OllamaPackage:
        """Write `<name>.<QUANTIZATION>.gguf` and `Modelfile` into `output`, by default the model's own folder.

        `model` is the merger's record or any checkpoint folder. The same package that is finished already is
        returned as it stands. Raises WeightsError where the model cannot be written as a GGUF or its chat
        form is not known, ArtifactError where `output` holds another finished package.
        """
        folder = Path(model.path if isinstance(model, MergedModel) else model)
        target = Path(output) if output is not None else folder
        config = read_config(folder)
        merged = model if isinstance(model, MergedModel) else _recorded_merge(folder)
        digest = merged.digest if merged else digest_checkpoint(folder)
        gguf_path = target / f"{re.sub('[/:]', '-', self.name)}.{self.quantization.upper()}.gguf"
        num_ctx = self._context(folder, config)
        if finished := self._finished(target, digest, gguf_path, num_ctx):
            return finished
        spec = find_spec(merged.base_name) if merged else None
        template, chat = ollama_template(folder, spec), _chat_form(folder, config)
        contract, license = merged.contract if merged else None, spec.license if spec else None
        path = target / "Modelfile"
        package = OllamaPackage(
            name=self.name,
            path=str(target),
            gguf=_made_by_merge(merged, gguf_path, self.quantization)
            or self._write(folder, gguf_path, license, contract),
            modelfile_path=str(path),
            num_ctx=num_ctx,
            num_predict=self.num_predict,
            temperature=self.temperature,
            stops=spec.stops if spec else end_texts(folder),
            template=template,
            system=contract.system if contract else "",
            license=license,
            chat=chat,
            contract=contract,
            create_command=f"ollama create {self.name} -f {shlex.quote(str(path))}",
        )
        return _recorded(package, folder, digest)

    def install(self, package: OllamaPackage | Path | str, host: str | None = None) -> InstalledPackage:
        """Make a package's model on an Ollama server, prove it there, and let the package's name stand for it.

        `package` is the record, or the folder that holds it; `host` is the server, else OLLAMA_HOST's, else the one on
        this machine. A killed run leaves what was there answering, and the next one finishes. Raises UnprovenError, a
        ProviderError, where what the server has is not what was packaged: what this run made is removed then.
        """
        found = package if isinstance(package, OllamaPackage) else read_package(package)
        return install_package(OllamaServer(host), found)

    def _context(self, folder: Path, config: dict[str, Any]) -> int:
        """Tokens of context: room for the longest row of the training, whatever of it is the prompt, and an answer."""
        most = int(config["max_position_embeddings"])
        if self.num_ctx is not None:
            return min(self.num_ctx, most)
        manifest = artifacts.read_manifest(folder)
        trained = manifest.stages.get("train") if manifest else None
        if trained is None:
            return min(_UNTRAINED_NUM_CTX, most)
        adapter = artifacts.parse_record(trained, Adapter, f"{folder / artifacts.MANIFEST_NAME}, stage train")
        if adapter.training is None:
            return min(_UNTRAINED_NUM_CTX, most)
        wanted = adapter.training.longest + self.num_predict
        return min(-(-wanted // _CONTEXT_STEP) * _CONTEXT_STEP, most)

    def _write(self, folder: Path, path: Path, license: str | None, contract: PromptContract | None) -> GGUFFile:
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)
        return write_gguf(
            folder,
            path,
            self.quantization,
            name=self.name,
            license=license.lower() if license else None,
            metadata={"package": self.name, **({"prompt_contract": contract.digest} if contract else {})},
        )

    def _finished(self, target: Path, digest: str, gguf_path: Path, num_ctx: int) -> OllamaPackage | None:
        """The package that stands in `target`, if it is of this model and these settings."""
        manifest = artifacts.read_manifest(target)
        if manifest is None or STAGE not in manifest.stages:
            return None
        package = read_package(target)
        found = (package.name, package.gguf.quantization, manifest.inputs.get("merged"))
        if found != (self.name, self.quantization, digest):
            raise _other_package(target, f"{package.name} ({package.gguf.quantization})")
        if not package.template:
            return None  # an earlier version made it, which did not note what a server is given
        if (package.num_ctx, package.num_predict, package.temperature) != (num_ctx, self.num_predict, self.temperature):
            found_too = f"num_ctx {package.num_ctx}, num_predict {package.num_predict}"
            raise _other_package(target, f"{package.name} ({found_too}, temperature {package.temperature:g})")
        return package if gguf_path.exists() and (target / "Modelfile").exists() else None


def _recorded(package: OllamaPackage, folder: Path, digest: str) -> OllamaPackage:
    """The package with its Modelfile and its note in the manifest; `folder` and `digest` are the checkpoint's."""
    target, path = Path(package.path), Path(package.modelfile_path)
    gguf_name = Path(package.gguf.path).name
    numbers = {key: value for key, value in package.parameters.items() if not isinstance(value, list)}
    try:
        text = modelfile(gguf_name, package.template, package.stops, numbers, package.license, system=package.system)
    except InputError as error:
        command = _install_command(package, folder)
        package = package.model_copy(update={"create_command": command})
        text = unwritten_modelfile(error.problem, command)
    package = package.model_copy(update={"serve": _serve(package, folder)})
    artifacts.write_text(path, text)
    artifacts.record_stage(
        target,
        STAGE,
        package,
        inputs={"merged": digest},
        outputs={gguf_name: package.gguf.digest, "Modelfile": digest_file(path)},
        contract=package.contract,
    )
    return package


def _install_command(package: OllamaPackage, folder: Path) -> str:
    settings = {
        "--model": str(folder),
        "--name": package.name,
        "--quant": package.gguf.quantization,
        "--num-ctx": str(package.num_ctx),
        "--num-predict": str(package.num_predict),
        "--temperature": f"{package.temperature:g}",
        "--output": package.path,
    }
    return shlex.join(["po-distill", "package", *(part for pair in settings.items() for part in pair), "--install"])


def _other_package(target: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{target} holds the finished package {what}.",
        "Name another folder with --output; nothing is written over a finished one.",
    )


def _made_by_merge(merged: MergedModel | None, path: Path, quantization: Quantization) -> GGUFFile | None:
    """The GGUF of that name which the merge wrote in its one pass over the weights, as it stands."""
    made = merged.gguf if merged else None
    if made is None or made.quantization != quantization or Path(made.path).resolve() != path.resolve():
        return None
    return made if path.exists() and path.stat().st_size == made.size_bytes else None


def _recorded_merge(folder: Path) -> MergedModel | None:
    manifest = artifacts.read_manifest(folder)
    if manifest is None or "merge" not in manifest.stages:
        return None
    return artifacts.parse_record(manifest.stages["merge"], MergedModel, f"{folder / artifacts.MANIFEST_NAME}, merge")


# --- what the checkpoint says ---------------------------------------------------------------------


def ollama_template(folder: Path, spec: BaseModelSpec | None) -> str:
    """A checkpoint's chat template in Ollama's language.

    Raises WeightsError where the form is not known and no registered base model brings one.
    """
    special = read_special_texts(folder)
    form = known_form(read_chat_template(folder), bos=special.get("bos", ""), eos=special.get("eos", ""))
    if form is not None:
        return OLLAMA_TEMPLATES.get(form.name) or chatml_ollama_template(form.default_system)
    if spec is not None and spec.ollama_template:
        return spec.ollama_template
    raise WeightsError(
        f"The chat template of {folder} is of no form that is known here (ChatML, {', '.join(OLLAMA_TEMPLATES)}).",
        "Register the base model (entry point po_distill.base_models) with its ollama_template.",
    )


def _chat_form(folder: Path, config: dict[str, Any]) -> ChatForm:
    tokenizer = read_tokenizer(folder, config)
    special = {kind: tokenizer.tokens[number] for kind, number in tokenizer.ids.items()}
    return ChatForm(
        template=read_chat_template(folder),
        bos=special.get("bos", ""),
        eos=special.get("eos", ""),
        runtime_adds_bos=tokenizer.add_bos,
    )


def _serve(package: OllamaPackage, folder: Path) -> dict[str, str]:
    """The command to type for each runtime; vLLM serves the checkpoint itself."""
    gguf, name = shlex.quote(package.gguf.path), shlex.quote(package.name)
    sampling = f"--temp {package.temperature:g} -n {package.num_predict}"
    return {
        "ollama": package.create_command,
        "llama_cpp": f"llama-server -m {gguf} -c {package.num_ctx} --jinja --alias {name} {sampling}",
        "vllm": f"vllm serve {shlex.quote(str(folder))} --served-model-name {name} --max-model-len {package.num_ctx}",
    }
