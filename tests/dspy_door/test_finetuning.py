"""BootstrapFinetune on our road, end to end with a tiny model, and what is refused before anything is trained."""

from __future__ import annotations

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("trl")
import dspy
from dspy.clients.utils_finetune import TrainDataFormat
from dspy.utils import DummyLM

from answers_of_dspy import CONCEPTS, ROLE
from po_distill.artifacts import read_jsonl, read_manifest
from po_distill.dspy import DistillProvider, StudentLM, dspy_metric
from po_distill.dspy.finetuning import DistillJob
from po_distill.errors import InputError, SettingsError
from tiny_models import tiny_model

pytestmark = pytest.mark.slow

MONTHS = {"January": "winter", "February": "winter", "April": "spring", "May": "spring"}


class Season(dspy.Signature):
    """Name the season."""

    month: str = dspy.InputField()
    season: str = dspy.OutputField()


def programs(models, base="nothing"):
    """(student, teacher); the teacher is wrong of May."""
    teacher, student = dspy.Predict(Season), dspy.Predict(Season)
    teacher.set_lm(DummyLM({month: {"season": season} for month, season in {**MONTHS, "May": "autumn"}.items()}))
    student.set_lm(dspy.LM("openai/none", provider=DistillProvider(models=models), finetuning_model=str(base)))
    return student, teacher


def compiled(student, teacher, metric, **settings):
    examples = [dspy.Example(month=month, season=season).with_inputs("month") for month, season in MONTHS.items()]
    optimizer = dspy.BootstrapFinetune(metric=metric, num_threads=1, **settings)
    return optimizer.compile(student, trainset=examples, teacher=teacher)


def same(example, prediction, trace=None):
    return 0.9 if example.season == prediction.season else 0.1


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)
    student, teacher = programs(folder, base)
    settings = {"max_steps": 1, "batch": 1, "epochs": 1.0, "max_seq_len": 1024}
    program = compiled(student, teacher, dspy_metric(same, min_score=0.5), train_kwargs=settings)
    yield folder / "dspy_student_v1", program
    program.lm.close()


def test_the_student_answers_the_program_from_its_own_gguf(distilled):
    folder, program = distilled
    assert isinstance(program.lm, StudentLM)
    assert str(folder) in program.lm.model
    assert isinstance(program.lm("hello", max_tokens=4)[0], str)


def test_every_stage_left_its_record_in_the_manifest(distilled):
    manifest = read_manifest(distilled[0])
    assert set(manifest.stages) == {"train", "merge", "package"}
    assert manifest.contract is None


def test_only_what_the_metric_takes_for_good_is_learned_and_word_for_word(distilled):
    folder, _ = distilled
    rows = [row for _, row in read_jsonl(folder / "data" / "calls.jsonl")]
    assert sorted(row["prompt"][-1]["content"].split("\n")[1] for row in rows) == ["April", "February", "January"]
    asked = dspy.ChatAdapter().format(Season, [], {"month": "April"})
    assert asked in [row["prompt"] for row in rows]


def test_another_round_takes_the_student_further(distilled):
    assert isinstance(distilled[1].lm.provider, DistillProvider)


def test_a_metric_that_refuses_everything_is_told_in_words(tmp_path):
    with pytest.raises(InputError, match="metric refused every answer"):
        compiled(*programs(tmp_path), dspy_metric(lambda *_: 0.0875))
    assert not list(tmp_path.iterdir())


def test_settings_that_the_trainer_does_not_know_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="Did you mean 'epochs'"):
        compiled(*programs(tmp_path), None, train_kwargs={"epoch": 1})


def finetuned(provider, calls, format=TrainDataFormat.CHAT):
    return provider.finetune(DistillJob(), "nothing", calls, format, {})


def test_calls_in_another_form_are_refused(tmp_path):
    provider = DistillProvider(models=tmp_path)
    with pytest.raises(SettingsError, match="ChatAdapter"):
        finetuned(provider, [{"prompt": "a", "completion": "b"}], TrainDataFormat.COMPLETION)
    with pytest.raises(InputError, match="call 1 does not end"):
        finetuned(provider, [{"messages": [{"role": "user", "content": "a"}]}])


def test_a_role_gates_the_calls_of_its_program(tmp_path):
    def call(concept, answer):
        prompt = [{"role": message.speaker, "content": message.content} for message in ROLE.render(concept)]
        return {"messages": [*prompt, {"role": "assistant", "content": answer}]}

    good = [call(concept, ROLE.answer_by_rules(concept)) for concept in CONCEPTS]
    bad = call(ROLE.generate_concepts(1, seed=99)[0], ROLE.answer_by_rules(CONCEPTS[0]).replace("FR001", "FR777"))
    provider = DistillProvider(models=tmp_path, role="product_owner", allow=["rare_class"])
    with pytest.raises(InputError):  # the base is none; all before it is done
        finetuned(provider, [*good, bad])
    rows = [row for _, row in read_jsonl(tmp_path / "po_student_v1" / "data" / "calls.jsonl")]
    assert len(rows) == len(good)
    refused = [row["reason"] for _, row in read_jsonl(tmp_path / "po_student_v1" / "data" / "calls.rejected.jsonl")]
    assert refused == ["unknown_requirement_id"]
