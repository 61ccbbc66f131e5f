import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from haiku import SCRIPTED, HaikuRole, ScriptedProvider, haiku_concept
from po_distill.calls import Caller, Retries
from po_distill.errors import PluginError, ProviderError
from po_distill.journal import Journal
from po_distill.records import Concept, GenerationSettings, ProviderSettings, Request
from po_distill.sending import open_provider

ROLE = HaikuRole()


def request(number: int = 1) -> Request:
    concept = haiku_concept(number)
    return Request(messages=ROLE.render(concept), concept=concept)


class Waits:
    """A sleep that only notes how long it was asked to be."""

    def __init__(self) -> None:
        self.noted: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.noted.append(seconds)


def run(folder: Path, requests, *, width=4, options=None, **settings):
    """(caller, answers) of a run over requests; errors come as answers."""
    with Journal(folder / "j.sqlite") as journal:
        caller = Caller(
            ProviderSettings(provider=SCRIPTED, options=options or {}),
            ROLE,
            journal,
            log_path=folder / "calls.log",
            chance=random.Random(1),
            **settings,
        )

        async def ask(one):
            try:
                return await caller.ask(one)
            except ProviderError as error:
                if error.fault == "refused":
                    raise
                return error

        return caller, list(caller.stream(requests, ask, width, in_order=True))


def ledger(folder: Path) -> list[str]:
    path = folder / "ledger"
    return path.read_text().split() if path.exists() else []


def test_a_journalled_answer_is_not_asked_for_again(tmp_path):
    options = {"ledger": str(tmp_path / "ledger")}
    _, first = run(tmp_path, [request(1), request(2)], options=options)
    caller, second = run(tmp_path, [request(1), request(2), request(3)], options=options)
    assert [a.response for a in second[:2]] == [a.response for a in first]
    assert [a.journalled for a in second] == [True, True, False]
    assert [a.answered_at for a in second[:2]] == [a.answered_at for a in first]
    assert sorted(ledger(tmp_path)) == ["H-00001", "H-00002", "H-00003"]
    assert (caller.tally.sends, caller.tally.from_journal) == (1, 2)


def test_a_run_that_finds_all_answers_in_its_journal_opens_no_provider(tmp_path):
    run(tmp_path, [request(1)])
    with Journal(tmp_path / "j.sqlite") as journal:
        ScriptedProvider.most_open = 0
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)
        assert len(list(caller.stream([request(1)], caller.ask, 1))) == 1
        assert ScriptedProvider.most_open == 0


def test_the_same_question_in_flight_twice_is_sent_once(tmp_path):
    options = {"ledger": str(tmp_path / "ledger"), "delay_s": 0.02}
    caller, answers = run(tmp_path, [request(1)] * 5, options=options)
    assert len(answers) == 5
    assert ledger(tmp_path) == ["H-00001"]
    assert caller.tally.from_journal == 4


def test_whatever_changes_the_answer_changes_the_key(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        model = tmp_path / "model.gguf"
        model.write_bytes(b"one")

        def key(one=None, attempt=0, **settings):
            caller = Caller(ProviderSettings(**{"provider": SCRIPTED, **settings}), ROLE, journal)
            return caller.key(one or request(), attempt)

        warmer = request().model_copy(update={"generation": GenerationSettings(temperature=1.0)})
        keys = [
            key(),
            key(request(2)),
            key(warmer),
            key(attempt=1),
            key(provider="offline"),
            key(model="m"),
            key(base_url="http://h"),
            key(options={"top_k": 1}),
            key(model=str(model)),
        ]
        model.write_bytes(b"two")
        keys.append(key(model=str(model)))
        assert len(set(keys)) == len(keys)
        elsewhere = tmp_path / "moved.gguf"
        elsewhere.write_bytes(b"two")
        assert key(model=str(elsewhere)) == keys[-1]
        other_id = Request(
            messages=request().messages, concept=Concept(concept_id="other", concept="c", requirements_yaml="r")
        )
        assert key(other_id) == key()


@pytest.mark.parametrize("fault", ["unavailable", "timeout"])
def test_faults_that_may_pass_wait_longer_each_time_and_try_again(tmp_path, fault):
    waits = Waits()
    options = {"faults": {"H-00001": [fault] * 4}}
    retries = Retries(sends=6, doubtful_sends=6)
    caller, answers = run(tmp_path, [request(1)], options=options, sleep=waits, retries=retries)
    assert answers[0].response.text.startswith("```haiku")
    assert (caller.tally.sends, caller.tally.failures) == (5, 4)
    for wait, whole in zip(waits.noted, [1, 2, 4, 8], strict=True):
        assert whole / 2 <= wait <= whole
    assert len({wait / whole for wait, whole in zip(waits.noted, [1, 2, 4, 8], strict=True)}) == 4  # jitter


def test_a_wait_never_passes_the_longest(tmp_path):
    assert Retries(longest_wait_s=5).wait_s(50, random.Random(1)) <= 5


def test_a_call_that_keeps_failing_is_given_up_and_asked_again_by_the_next_run(tmp_path):
    options = {"faults": {"H-00001": ["unavailable"] * 3}, "ledger": str(tmp_path / "ledger")}
    _, answers = run(tmp_path, [request(1)], options=options, sleep=Waits(), retries=Retries(sends=3))
    assert answers[0].fault == "unavailable"
    caller, answers = run(tmp_path, [request(1)], options={"ledger": options["ledger"]} | {"faults": {}})
    assert not isinstance(answers[0], ProviderError)
    assert len(ledger(tmp_path)) == 4
    assert caller.tally.in_doubt == 0


@pytest.mark.parametrize("fault", ["bad_answer", "blocked"])
def test_faults_of_one_request_are_final_for_it_and_journalled(tmp_path, fault):
    options = {"faults": {"H-00001": [fault]}, "ledger": str(tmp_path / "ledger")}
    _, answers = run(tmp_path, [request(1), request(2)], options=options, sleep=Waits())
    assert answers[0].fault == fault
    assert answers[1].response.model == "scripted"
    _, answers = run(tmp_path, [request(1)], options=options)
    assert (answers[0].fault, answers[0].problem) == (fault, "H-00001 failed.")
    assert ledger(tmp_path).count("H-00001") == 1


def test_a_refusal_stops_the_run_at_once(tmp_path):
    taken = []

    def requests():
        for number in range(1000):
            taken.append(number)
            yield request(number)

    options = {"faults": {"H-00003": ["refused"]}, "ledger": str(tmp_path / "ledger"), "delay_s": 0.001}
    with pytest.raises(ProviderError, match="H-00003 failed"):
        run(tmp_path, requests(), options=options)
    assert len(taken) < 20
    with Journal(tmp_path / "j.sqlite") as journal:  # what was in flight was awaited
        assert journal.in_doubt() == []


def test_a_bug_in_a_provider_stops_the_run_with_its_name(tmp_path):
    with pytest.raises(ProviderError, match=r"haiku:ScriptedProvider.*KeyError.*a bug") as caught:
        run(tmp_path, [request(1)], options={"break_at": "H-00001"})
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_window_slides_and_is_never_wider_than_asked(tmp_path):
    ScriptedProvider.busiest = 0
    _, answers = run(tmp_path, [request(n) for n in range(20)], width=5, options={"delay_s": 0.005})
    assert len(answers) == 20
    assert ScriptedProvider.busiest == 5


def test_a_slow_call_holds_up_no_other(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)

        async def work(number):
            await asyncio.sleep(0.3 if number == 0 else 0)
            return number

        assert list(caller.stream(range(30), work, 2))[-1] == 0
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)
        assert list(caller.stream(range(30), work, 2, in_order=True)) == list(range(30))


def test_items_are_taken_only_as_they_are_needed(tmp_path):
    taken = []

    def items():
        for number in range(100_000):
            taken.append(number)
            yield number

    async def work(number):
        return number

    with Journal(tmp_path / "j.sqlite") as journal:
        for in_order in (False, True):
            taken.clear()
            caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)
            with closing(caller.stream(items(), work, 4, in_order=in_order)) as results:
                assert next(results) is not None
            assert len(taken) <= 8


def test_the_first_of_an_ordered_run_holds_back_a_bounded_number_of_results(tmp_path):
    taken = []

    async def work(number):
        taken.append(number)
        await asyncio.sleep(0.2 if number == 0 else 0)
        return number

    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)
        with closing(caller.stream(range(100_000), work, 2, in_order=True)) as results:
            assert next(results) == 0
        assert len(taken) < 80


def test_it_works_inside_a_running_event_loop_as_notebooks_have(tmp_path):
    async def notebook():
        return run(tmp_path, [request(1), request(2)])

    _, answers = asyncio.run(notebook())
    assert len(answers) == 2


def test_the_cost_log_has_one_line_per_send_and_no_prompt(tmp_path):
    options = {"faults": {"H-00001": ["timeout"], "H-00002": ["blocked"]}}
    run(tmp_path, [request(1), request(2)], options=options, sleep=Waits())
    (log,) = tmp_path.glob("calls_*.log")
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sorted((line["concept_id"], line["status"]) for line in lines) == [
        ("H-00001", "answered"),
        ("H-00001", "timeout"),
        ("H-00002", "blocked"),
    ]
    answered = next(line for line in lines if line["status"] == "answered")
    assert answered["completion_tokens"] == 5
    assert answered["usd"] == answered["cumulative_usd"] == 0.001
    assert answered["latency_s"] == 0.5
    assert answered["finish_reason"] == "stop"
    assert "Pond" not in text
    assert "frog" not in text


def test_text_that_utf8_cannot_hold_is_journalled_with_replacements(tmp_path):
    _, answers = run(tmp_path, [request(1)], options={"answers": {"H-00001": ["half \ud83d pair"]}})
    assert answers[0].response.text == "half ? pair"
    assert run(tmp_path, [request(1)], options={"answers": {"H-00001": ["half \ud83d pair"]}})[1][0].journalled


def test_a_provider_is_a_plugin_or_a_class_by_its_dotted_path():
    assert isinstance(open_provider(ProviderSettings(provider=SCRIPTED), ROLE), ScriptedProvider)
    ScriptedProvider.open_now -= 1
    for name in ("nowhere:Provider", "haiku:Nothing", ":x"):
        with pytest.raises(PluginError, match="does not load"):
            open_provider(ProviderSettings(provider=name), ROLE)
    with pytest.raises(PluginError, match="no provider named 'replai'"):
        open_provider(ProviderSettings(provider="replai"), ROLE)


_CHILD = """
import sys
from contextlib import closing
from haiku import HaikuRole, haiku_concept
from po_distill.calls import Caller
from po_distill.journal import Journal
from po_distill.records import ProviderSettings, Request
folder, options = sys.argv[1], __import__("json").loads(sys.argv[2])
role = HaikuRole()
concepts = [haiku_concept(n) for n in range(40)]
with Journal(folder + "/j.sqlite") as journal:
    caller = Caller(ProviderSettings(provider="haiku:ScriptedProvider", model="m", options=options), role, journal)
    requests = (Request(messages=role.render(c), concept=c) for c in concepts)
    with closing(caller.stream(requests, caller.ask, 4)) as answers:
        for number, answer in enumerate(answers):
            print("answered", number, flush=True)
    print("in doubt", caller.tally.in_doubt, "sends", caller.tally.sends, flush=True)
"""


def child(folder: Path, options: dict):
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder), json.dumps(options)],
        env={"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run in a background job
    )


def journalled(folder: Path) -> set[str]:
    """The concepts whose call has an answer, by the journal."""
    with Journal(folder / "j.sqlite") as journal:
        return {send["concept_id"] for send in journal.sends() if send["ended_at"] and not send["fault"]}


def wait_for_answers(process, count: int) -> None:
    for line in process.stdout:
        if line.startswith(f"answered {count}"):
            return
    raise AssertionError(process.stderr.read())


def test_after_kill_9_no_journalled_call_is_made_again_and_those_in_doubt_are_reported(tmp_path):
    options = {"ledger": str(tmp_path / "ledger"), "delay_s": 0.02}
    killed = child(tmp_path, options)
    wait_for_answers(killed, 10)
    killed.kill()
    killed.communicate()
    bought = journalled(tmp_path)
    before = ledger(tmp_path)
    assert len(bought) >= 11
    with Journal(tmp_path / "j.sqlite") as journal:
        doubtful = {send.concept_id for send in journal.in_doubt()}
    assert len(doubtful) <= 4
    assert set(before) - bought <= doubtful
    again = child(tmp_path, options)
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    after = ledger(tmp_path)[len(before) :]
    assert not bought & set(after)
    assert journalled(tmp_path) == {f"H-{n:05d}" for n in range(40)}
    assert f"in doubt {len(doubtful)} sends {40 - len(bought)}" in output


def test_ctrl_c_awaits_what_is_in_flight_and_journals_it(tmp_path):
    options = {"ledger": str(tmp_path / "ledger"), "delay_s": 0.1}
    process = child(tmp_path, options)
    wait_for_answers(process, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert journalled(tmp_path) == set(ledger(tmp_path))
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.in_doubt() == []


def test_a_second_ctrl_c_leaves_what_is_in_flight_and_loses_nothing_journalled(tmp_path):
    options = {"ledger": str(tmp_path / "ledger"), "delay_s": 5.0}
    process = child(tmp_path, options)
    while len(ledger(tmp_path)) < 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - started < 3
    with Journal(tmp_path / "j.sqlite") as journal:
        assert len(journal.in_doubt()) == 4
