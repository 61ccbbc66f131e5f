"""MIPROv2 for a distilled student: another model writes the instructions, and every prompt fits the context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import dspy
from dspy.adapters import ChatAdapter
from dspy.teleprompt import MIPROv2

from po_distill.dspy.metrics import dspy_metric
from po_distill.errors import SettingsError
from po_distill.metric import Metric
from po_distill.progress import say
from po_distill.records import Message

_LEAST_BYTES_A_TOKEN = 2.0  # of English and YAML a token has 3 to 4; codes and other scripts fewer
_INSTRUCTION_TOKENS = 384  # room for instructions that are yet to be written
_MARGIN = 1.2  # of an answer, over the longest that is known


def mipro(
    metric: str | Metric = "product_owner",
    *,
    prompt_model: dspy.LM,
    task_model: dspy.LM | None = None,
    min_score: float = 0.85,
    num_ctx: int | None = None,
    num_threads: int | None = None,
    max_bootstrapped_demos: int = 2,
    max_labeled_demos: int = 2,
    **settings: Any,
) -> FittingMIPROv2:
    """An optimizer for programs of the student `task_model` (by default DSPy's): `.compile(program, trainset=...)`.

    `prompt_model` writes the instructions; a distilled student cannot, so it has to be another. `metric` is one for
    `dspy_metric`; a demonstration is kept from `min_score` on. Demonstrations that would pass `num_ctx` (the student's
    own, where it says) are left out, as are instructions that are too long. `num_threads` are the runtime's slots.
    `settings` go to MIPROv2. Raises SettingsError where the models are one, or no context is known.
    """
    student = task_model or dspy.settings.lm
    if student is None:
        raise SettingsError("There is no model to optimize for.", "Give task_model, or dspy.configure(lm=...).")
    if prompt_model is None or prompt_model is student or prompt_model.model == student.model:
        raise SettingsError(
            f"The prompt_model is {'missing' if prompt_model is None else 'the student itself'}; a distilled student "
            "answers concepts and writes no instructions.",
            "Give the old model, or po_distill.dspy.role_instructions(), which asks nobody.",
        )
    context = num_ctx or getattr(student, "num_ctx", None)
    if context is None:
        raise SettingsError(f"The context of {student.model} is not known.", "Give num_ctx, in tokens.")
    return FittingMIPROv2(
        metric=dspy_metric(metric, min_score=min_score),
        metric_threshold=min_score,
        prompt_model=prompt_model,
        task_model=student,
        num_ctx=context,
        num_threads=num_threads or getattr(student, "parallel", 1),
        max_bootstrapped_demos=max_bootstrapped_demos,
        max_labeled_demos=max_labeled_demos,
        **settings,
    )


class FittingMIPROv2(MIPROv2):  # type: ignore[misc]
    """MIPROv2 whose every prompt leaves room for the answer in `num_ctx` tokens."""

    def __init__(self, *, num_ctx: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_ctx = num_ctx
        self.left_out = 0  # demonstrations and instructions that did not fit, of the last compile
        self._fit: _Fit | None = None

    def compile(
        self, student: dspy.Module, *, trainset: list[Any], valset: list[Any] | None = None, **settings: Any
    ) -> Any:
        """The optimized program. Raises SettingsError where even a bare prompt does not fit."""
        self.left_out = 0
        self._fit = _Fit(self.task_model, self.num_ctx, [*trainset, *(valset or [])])
        labeled = settings.pop("max_labeled_demos", None)
        wanted = self.max_labeled_demos if labeled is None else labeled
        fitting = self._fit.most_labeled(student, trainset, wanted)
        if fitting < wanted:
            say(f"MIPROv2: {fitting} of {wanted} labeled demonstrations fit into {self.num_ctx} tokens.")
        return super().compile(student, trainset=trainset, valset=valset, max_labeled_demos=fitting, **settings)

    # The steps of MIPROv2, each with what does not fit taken out of what it found.

    def _bootstrap_fewshot_examples(self, program: dspy.Module, *given: Any, **settings: Any) -> Any:
        found = super()._bootstrap_fewshot_examples(program, *given, **settings)
        assert self._fit is not None
        for number, sets in (found or {}).items():
            signature = program.predictors()[number].signature
            for place, demos in enumerate(sets):
                sets[place] = self._fit.shortened(signature, demos)
                self.left_out += len(demos) - len(sets[place])
        return found

    def _propose_instructions(self, program: dspy.Module, *given: Any, **settings: Any) -> Any:
        found = super()._propose_instructions(program, *given, **settings)
        assert self._fit is not None
        for number, proposals in found.items():
            signature = program.predictors()[number].signature
            fitting = [text for text in proposals[1:] if self._fit.has_room(signature.with_instructions(text))]
            self.left_out += len(proposals) - 1 - len(fitting)
            found[number] = [proposals[0], *dict.fromkeys(fitting)]
        return found


class _Fit:
    """What fits into a context, counted with the student's tokenizer where the runtime says, else safely guessed."""

    def __init__(self, student: dspy.LM, num_ctx: int, examples: Sequence[Any]) -> None:
        self._student, self._num_ctx, self._examples = student, num_ctx, examples
        self._counted: dict[str, int] = {}

    def most_labeled(self, program: dspy.Module, trainset: Sequence[Any], wanted: int) -> int:
        """How many demonstrations of the training set fit, whichever they are: the longest are tried."""
        for predictor in program.predictors():
            signature = predictor.signature
            if not self.has_room(signature):
                raise SettingsError(
                    f"A prompt without demonstrations and its answer do not fit into {self._num_ctx} tokens.",
                    "Give the student a larger num_ctx, or leave the longest examples out.",
                )
            names = set(signature.fields)
            complete = [example for example in trainset if names <= set(example.keys())]
            longest = sorted(complete, key=lambda example: -self._length(signature, [dict(example)]))[:wanted]
            while longest and not self.has_room(signature, [dict(example) for example in longest]):
                longest.pop()
            wanted = min(wanted, len(longest)) if complete else wanted
        return wanted

    def shortened(self, signature: Any, demos: Sequence[Any]) -> list[Any]:
        """The first demonstrations that fit together."""
        kept: list[Any] = []
        for demo in demos:
            if self.has_room(signature, [dict(one) for one in (*kept, demo)]):
                kept.append(demo)
        return kept

    def has_room(self, signature: Any, demos: Sequence[dict[str, Any]] = ()) -> bool:
        """Whether prompts with these demonstrations leave room for an answer, and for other instructions."""
        return self._length(signature, demos) + self._question(signature) + self._answer(signature) <= self._num_ctx

    def _length(self, signature: Any, demos: Sequence[dict[str, Any]]) -> int:
        """Tokens of a prompt with these demonstrations and an empty question."""
        adapter = ChatAdapter()
        empty = dict.fromkeys(signature.input_fields, "")
        turns = adapter.format(signature, list(demos), empty)
        return _INSTRUCTION_TOKENS + self._tokens(tuple(Message.model_validate(turn) for turn in turns))

    def _question(self, signature: Any) -> int:
        """Tokens of the longest inputs."""
        return self._tokens_of(self._longest(signature.input_fields))

    def _answer(self, signature: Any) -> int:
        """Tokens of an answer: a little over the longest labeled one, or what the model may say."""
        longest = self._longest(signature.output_fields).strip()
        limit = int(self._student.kwargs.get("max_tokens") or self._num_ctx // 4)
        return min(int(self._tokens_of(longest) * _MARGIN) + 32, limit) if longest else min(limit, self._num_ctx // 2)

    def _longest(self, names: Iterable[str]) -> str:
        """The longest of the examples' texts in these fields."""
        names = tuple(names)
        texts = ("\n".join(str(example.get(name) or "") for name in names) for example in self._examples)
        return max(texts, key=len, default="")

    def _tokens_of(self, text: str) -> int:
        if text not in self._counted:
            self._counted[text] = self._tokens((Message(speaker="user", content=text),))
        return self._counted[text]

    def _tokens(self, messages: tuple[Message, ...]) -> int:
        count = getattr(self._student, "count_tokens", None)
        counted: int | None = count(messages) if count is not None else None
        if counted is not None:
            return counted
        return sum(int(len(message.content.encode()) / _LEAST_BYTES_A_TOKEN) + 8 for message in messages)
