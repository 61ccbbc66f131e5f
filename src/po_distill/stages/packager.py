"""A merged model becomes a GGUF and a Modelfile: all that an Ollama server needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from po_distill import artifacts
from po_distill.artifacts import digest_file
from po_distill.base_models import MISTRAL_OLLAMA_TEMPLATE, chatml_ollama_template
from po_distill.errors import ArtifactError, InputError, WeightsError
from po_distill.records import BaseModelSpec, GGUFFile, MergedModel, OllamaPackage, PromptContract, Quantization
from po_distill.weights.chat_template import known_form, read_chat_template
from po_distill.weights.checkpoint import digest_checkpoint, end_texts, find_spec, read_config, read_special_texts
from po_distill.weights.gguf import write_gguf

STAGE = "package"
# Ollama, types/model/name.go: each part begins with a letter, a digit or "_", and has at most 80 characters.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:(?:{_PART}(?::\d+)?/)?[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{_PART}(?::{_PART})?")
_DEFAULT_NUM_CTX = 8192


class Packager:
    """Packages checkpoints under the Ollama model name `name`.

    `num_ctx` (tokens of context, at most what the model was made for), `temperature` and `num_predict` (the
    longest answer, in tokens) become parameters of the Modelfile.
    """

    def __init__(
        self,
        name: str = "po-student-v1",
        quantization: Quantization = "q4_0",
        *,
        num_ctx: int = _DEFAULT_NUM_CTX,
        temperature: float = 0.4,
        num_predict: int = 4096,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no name that Ollama takes for a model.",
                "Use letters, digits, '-', '_' and '.', such as po-student-v1, with an optional tag after a colon.",
            )
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
        if finished := self._finished(target, digest, gguf_path):
            return finished
        spec = find_spec(merged.base_name) if merged else None
        template = ollama_template(folder, spec)
        stops = spec.stops if spec else end_texts(folder)
        contract = merged.contract if merged else None
        num_ctx = min(self.num_ctx, int(config["max_position_embeddings"]))
        text = modelfile(
            gguf_path.name,
            template,
            stops,
            {"num_ctx": num_ctx, "num_predict": self.num_predict, "temperature": self.temperature},
            spec.license if spec else None,
        )
        for partial in target.glob(f".{gguf_path.name}.*.partial"):
            partial.unlink(missing_ok=True)
        gguf = write_gguf(
            folder,
            gguf_path,
            self.quantization,
            name=self.name,
            license=spec.license.lower() if spec else None,
            metadata={"prompt_contract": contract.digest} if contract else None,
        )
        artifacts.write_text(target / "Modelfile", text)
        return self._recorded(target, gguf, num_ctx, stops, contract, digest)

    def _recorded(
        self,
        target: Path,
        gguf: GGUFFile,
        num_ctx: int,
        stops: Sequence[str],
        contract: PromptContract | None,
        digest: str,
    ) -> OllamaPackage:
        path = target / "Modelfile"
        package = OllamaPackage(
            name=self.name,
            path=str(target),
            gguf=gguf,
            modelfile_path=str(path),
            num_ctx=num_ctx,
            stops=tuple(stops),
            contract=contract,
            create_command=f"ollama create {self.name} -f {shlex.quote(str(path))}",
        )
        artifacts.record_stage(
            target,
            STAGE,
            package,
            inputs={"merged": digest},
            outputs={Path(gguf.path).name: gguf.digest, "Modelfile": digest_file(path)},
            contract=contract,
        )
        return package

    def _finished(self, target: Path, digest: str, gguf_path: Path) -> OllamaPackage | None:
        """The package that stands in `target`, if it is of this model and these settings."""
        manifest = artifacts.read_manifest(target)
        if manifest is None or STAGE not in manifest.stages:
            return None
        package = artifacts.parse_record(
            manifest.stages[STAGE], OllamaPackage, f"{target / artifacts.MANIFEST_NAME}, stage {STAGE}"
        )
        same = (package.name, package.gguf.quantization, manifest.inputs.get("merged")) == (
            self.name,
            self.quantization,
            digest,
        )
        if not same:
            raise ArtifactError(
                f"{target} holds the finished package {package.name} ({package.gguf.quantization}).",
                "Name another folder with --output; nothing is written over a finished one.",
            )
        return package if gguf_path.exists() and (target / "Modelfile").exists() else None


def _recorded_merge(folder: Path) -> MergedModel | None:
    manifest = artifacts.read_manifest(folder)
    if manifest is None or "merge" not in manifest.stages:
        return None
    return artifacts.parse_record(manifest.stages["merge"], MergedModel, f"{folder / artifacts.MANIFEST_NAME}, merge")


# --- the Modelfile --------------------------------------------------------------------------------


def ollama_template(folder: Path, spec: BaseModelSpec | None) -> str:
    """A checkpoint's chat template in Ollama's language.

    Raises WeightsError where the form is not known and no registered base model brings one.
    """
    special = read_special_texts(folder)
    form = known_form(read_chat_template(folder), bos=special.get("bos", ""), eos=special.get("eos", ""))
    if form is not None:
        return MISTRAL_OLLAMA_TEMPLATE if form.name == "mistral" else chatml_ollama_template(form.default_system)
    if spec is not None and spec.ollama_template:
        return spec.ollama_template
    raise WeightsError(
        f"The chat template of {folder} is of no form that is known here (ChatML, Mistral).",
        "Register the base model (entry point po_distill.base_models) with its ollama_template.",
    )


def modelfile(
    gguf_name: str, template: str, stops: Sequence[str], parameters: dict[str, int | float], license: str | None
) -> str:
    """The text of a Modelfile. Raises InputError where a value would break out of its quotes."""
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted('TEMPLATE', template)}"]
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    lines += [f"PARAMETER stop {_quoted('stop', stop)}" for stop in stops]
    lines += [f"LICENSE {_quoted('LICENSE', license)}"] if license else []
    return "\n".join(lines) + "\n"


def _quoted(what: str, value: str) -> str:
    """A value in the Modelfile's quotes, of which there are two kinds and no escapes (Ollama, parser/parser.go)."""
    if odd := next((sign for sign in value if not sign.isprintable() and sign not in "\n\t"), None):
        raise InputError(
            f"The Modelfile's {what} holds the character U+{ord(odd):04X}, which Ollama drops.", "Take it out."
        )
    if '"' not in value and "\n" not in value:
        return f'"{value}"'
    if '"""' in value or value.startswith('"') or value.endswith('"'):
        raise InputError(
            f"The Modelfile's {what} holds quotes that would end it early: {value[:60]!r}.",
            "Take them out; Modelfiles know no escapes.",
        )
    return f'"""{value}"""'
