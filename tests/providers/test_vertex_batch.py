"""The provider `vertex_batch` against a fake of batch jobs and Cloud Storage that counts what is billed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("google.genai")
pytest.importorskip("google.cloud.storage")

from fakes.logins import service_account
from fakes.vertex_batch import INPUT_NANO, OUTPUT_NANO, FakeBatchVertex, Knobs, prompt_of, tokens
from haiku import HaikuRole
from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.interfaces import Provider
from po_distill.providers.vertex_batch import VertexBatchProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request
from po_distill.roles.product_owner.role import ProductOwnerRole

BUCKET = "gs://po-bucket/runs"


def echo(body):
    return f"You said: {prompt_of(body)}"


@pytest.fixture
def vertex(tmp_path, monkeypatch):
    with FakeBatchVertex(Knobs(answer=echo)) as fake:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path / "login.json", fake)))
        yield fake


def settings(vertex, model="gemini-2.5-flash", **options):
    quick = {"gather_s": 0.05, "poll_s": 0.01, "min_batch": 5}
    place = {"project": "test-project", "bucket": BUCKET, "storage_base_url": vertex.base_url}
    options = {**place, **quick, **options}
    options = {name: value for name, value in options.items() if value is not None}
    return ProviderSettings(provider="vertex_batch", model=model, base_url=vertex.base_url, options=options)


@asynccontextmanager
async def opened(vertex, **options):
    provider = VertexBatchProvider(settings(vertex, **options), HaikuRole())
    try:
        yield provider
    finally:
        await provider.aclose()


def ask(text, **generation):
    return Request(messages=(Message(speaker="user", content=text),), generation=GenerationSettings(**generation))


def questions(count, stem="question"):
    return [ask(f"{stem} {number}") for number in range(count)]


def answers(vertex, requests, **options):
    """What a provider answers to requests that come at once: responses, and errors in their place."""

    async def run():
        async with opened(vertex, **options) as provider:
            return await asyncio.gather(*map(provider.generate, requests), return_exceptions=True)

    return asyncio.run(run())


def says(requests):
    return [f"You said: {request.messages[0].content}" for request in requests]


def texts(responses):
    return [response.text for response in responses]


def names(vertex):
    return [job["displayName"] for job in vertex.jobs.values()]


def inputs(vertex):
    """The lines of each input file, by the number at the end of its job's name."""
    return {
        int(name.split("/")[-2].rpartition("-")[2]): [json.loads(line)["request"] for line in data.splitlines()]
        for name, (data, _) in sorted(vertex.objects.items())
        if name.endswith("/input.jsonl")
    }


# --- jobs ---------------------------------------------------------------------------------------


def test_it_is_a_provider_that_wants_a_thousand_calls_at_a_time(vertex):
    provider = VertexBatchProvider(settings(vertex), HaikuRole())
    assert isinstance(provider, Provider)
    traits = provider.traits
    assert (traits.family, traits.paid, traits.structured_output, traits.window) == ("vertex", True, True, 1000)
    assert {"bucket", "max_batch", "project", "credentials_path"} < set(traits.transport_options)


def test_a_batch_is_answered_at_half_the_price_each_request_with_its_own_answer(vertex):
    requests = questions(30)
    responses = answers(vertex, requests, labels={"team": "search"})
    assert texts(responses) == says(requests)  # the fake's lines come in another order
    assert {response.price_factor for response in responses} == {0.5}
    assert not any(response.bought_before for response in responses)
    first = responses[0]
    assert first.model == "gemini-2.5-flash" and first.finish == "stop"
    assert first.usage.prompt_tokens == tokens("question 0") and first.usage.completion_tokens == tokens(first.text)
    assert 0.02 < first.usage.latency_s < 10
    assert vertex.nano_usd("batch") == sum(
        tokens(f"question {number}") * INPUT_NANO // 2 + tokens(answer.text) * OUTPUT_NANO // 2
        for number, answer in enumerate(responses)
    )
    assert vertex.calls["online"] == 0 and len(vertex.jobs) == 1
    line = inputs(vertex)[1][0]
    assert set(line) == {"contents", "generationConfig", "labels"} and line["labels"]["team"] == "search"
    assert len(line["labels"]["po_distill_key"]) == 40


def test_the_product_owner_is_answered_in_both_forms_with_systems_and_schemas(vertex):
    vertex.knobs.answer = Knobs().answer
    asked = []
    for form in ("fenced", "json"):
        role = ProductOwnerRole(form)
        schema = role.json_schema() if form == "json" else None
        for concept in role.generate_concepts(6, seed=1):
            request = Request(messages=role.render(concept), concept=concept, json_schema=schema)
            asked.append((role, concept, request))
    responses = answers(vertex, [request for _, _, request in asked], max_batch=12)
    scores = [role.score(concept, got.text) for (role, concept, _), got in zip(asked, responses, strict=True)]
    assert all(score.valid and score.value > 0.9 for score in scores)
    assert "systemInstruction" in inputs(vertex)[1][0] and len(inputs(vertex)[1]) == 12


def test_fewer_than_min_batch_go_online_at_once_and_at_full_price(vertex):
    requests = questions(4)
    responses = answers(vertex, requests)
    assert texts(responses) == says(requests)
    assert {(each.price_factor, each.bought_before) for each in responses} == {(1.0, False)}
    assert vertex.calls["online"] == 4 and not vertex.jobs and not inputs(vertex)


def test_2500_requests_go_in_three_jobs(vertex):
    requests = questions(2500)
    responses = answers(vertex, requests, gather_s=1.0)
    assert texts(responses) == says(requests)
    assert [len(lines) for lines in inputs(vertex).values()] == [1000, 1000, 500]
    assert [name.rpartition("-")[2] for name in names(vertex)] == ["1", "2", "3"]
    assert set(vertex.times_billed().values()) == {1} and vertex.calls["online"] == 0


def test_a_batch_is_cut_when_no_request_came_for_a_while(vertex):
    async def run():
        async with opened(vertex, gather_s=0.3) as provider:
            tasks = []
            for request in questions(6):  # together longer than gather_s, each within it
                tasks.append(asyncio.create_task(provider.generate(request)))
                await asyncio.sleep(0.1)
            return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == 6
    assert [len(lines) for lines in inputs(vertex).values()] == [6]


def test_requests_that_are_equal_share_a_line_which_only_one_of_them_bought(vertex):
    responses = answers(vertex, [*questions(5), ask("question 0")])
    assert responses[0].text == responses[5].text
    assert [response.bought_before for response in responses] == [False] * 5 + [True]
    assert len(inputs(vertex)[1]) == 5


def test_a_request_that_was_answered_is_bought_anew_when_it_is_asked_again(vertex):
    async def run():
        async with opened(vertex) as provider:
            return [await asyncio.gather(*map(provider.generate, questions(5))) for _ in range(2)]

    _, again = asyncio.run(run())
    assert not any(response.bought_before for response in again)
    assert set(vertex.times_billed().values()) == {2} and len(vertex.jobs) == 2


def test_another_seed_or_limit_is_another_request(vertex):
    requests = [ask("x", seed=seed, max_tokens=limit) for seed in (1, 2, 3) for limit in (10, 20)]
    answers(vertex, requests)
    assert len({line["labels"]["po_distill_key"] for line in inputs(vertex)[1]}) == 6


@pytest.mark.parametrize("partial", [False, True])
def test_lines_that_failed_or_are_missing_are_asked_again_online(vertex, partial):
    knobs = vertex.knobs
    knobs.error_line_share, knobs.missing_line_share, knobs.garbage_line_share = 0.2, 0.1, 0.1
    knobs.shards, knobs.partial = 5, partial
    knobs.page_size = 2  # the list of the shards takes three pages
    requests = questions(40)
    responses = answers(vertex, requests)
    assert texts(responses) == says(requests)
    assert sorted(response.price_factor for response in responses) == [0.5] * 24 + [1.0] * 16
    assert vertex.calls["online"] == 16 and set(vertex.times_billed().values()) == {1}


def test_a_blocked_answer_in_a_line_is_an_answer(vertex):
    def blocked(body, model, mode):
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": model}

    vertex._answer = blocked
    responses = answers(vertex, questions(5))
    assert {(each.finish, each.price_factor) for each in responses} == {("blocked", 0.5)}
    assert vertex.calls["online"] == 0


# --- jobs that fail -----------------------------------------------------------------------------


JOB_ERRORS = [
    (7, "The service agent may not read gs://po-bucket.", "refused"),
    (3, "The input is no JSONL.", "refused"),
    (5, "The bucket does not exist.", "refused"),
    (0, "Something nobody has a word for.", "refused"),
    (13, "An internal error occurred.", "unavailable"),
    (0, "Internal error occurred.", "unavailable"),
    (8, "Quota exceeded.", "rate_limited"),
    (0, "RESOURCE_EXHAUSTED: batch quota", "rate_limited"),
]


def test_a_job_that_fails_as_a_whole_fails_its_requests_and_the_same_are_sent_in_another_job(vertex):
    async def run():
        failed = []
        async with opened(vertex) as provider:
            for vertex.knobs.fail_code, vertex.knobs.fail_job, _ in JOB_ERRORS:
                failed.append(await asyncio.gather(*map(provider.generate, questions(5)), return_exceptions=True))
            vertex.knobs.fail_job = ""
            return failed, await asyncio.gather(*map(provider.generate, questions(5)))

    failed, responses = asyncio.run(run())
    for errors, (_, message, fault), name in zip(failed, JOB_ERRORS, names(vertex), strict=False):
        assert {(error.fault, error.doubtful) for error in errors} == {(fault, False)}
        assert message in errors[0].problem and name in errors[0].problem
    assert texts(responses) == says(questions(5)) and not any(response.bought_before for response in responses)
    assert len(vertex.jobs) == len(JOB_ERRORS) + 1 and vertex.calls["online"] == 0
    assert set(vertex.times_billed().values()) == {1}


@pytest.mark.parametrize(("state", "fault"), [("CANCELLED", "refused"), ("EXPIRED", "unavailable")])
def test_a_job_that_ended_before_its_work_was_done_fails_its_requests(vertex, state, fault):
    vertex.knobs.end_state = f"JOB_STATE_{state}"
    assert [error.fault for error in answers(vertex, questions(5))] == [fault] * 5


def test_a_job_that_failed_does_not_count_and_the_next_takes_the_next_number(vertex):
    vertex.knobs.fail_job = "The service agent may not read."
    answers(vertex, questions(5))
    vertex.knobs.fail_job = ""
    responses = answers(vertex, questions(5))
    assert texts(responses) == says(questions(5)) and not any(each.bought_before for each in responses)
    assert [name.rpartition("-")[2] for name in names(vertex)] == ["1", "2"]


def test_an_input_file_that_is_gone_fails_the_job(vertex):
    async def run():
        vertex.knobs.pending_s = 0.3
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            vertex.objects.clear()
            return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(run())
    assert {error.fault for error in errors} == {"refused"} and "not found" in errors[0].problem


def test_a_job_that_is_done_without_any_output_is_not_paid_a_second_time(vertex):
    vertex._predict = lambda job: {}
    errors = answers(vertex, questions(5))
    assert {(error.fault, error.doubtful) for error in errors} == {("refused", True)}
    assert "/output/" in errors[0].problem and vertex.calls["online"] == 0


def test_a_job_that_cannot_be_seen_now_and_then_is_looked_at_again(vertex):
    vertex.knobs.poll_503_share, vertex.knobs.run_s = 0.5, 0.4
    responses = answers(vertex, questions(5), poll_s=0.005)
    assert texts(responses) == says(questions(5)) and vertex.calls["poll"] > 5


def test_a_job_that_cannot_be_seen_for_long_is_in_doubt_and_found_by_the_next_send(vertex):
    vertex.knobs.poll_503_share = 1.0

    async def run():
        async with opened(vertex, poll_s=0.002) as provider:
            errors = await asyncio.gather(*map(provider.generate, questions(5)), return_exceptions=True)
            assert vertex.calls["poll"] == 11
            vertex.knobs.poll_503_share = 0.0
            return errors, await asyncio.gather(*map(provider.generate, questions(5)))

    errors, responses = asyncio.run(run())
    assert {(error.fault, error.doubtful) for error in errors} == {("unavailable", True)}
    assert texts(responses) == says(questions(5)) and all(response.bought_before for response in responses)
    assert len(vertex.jobs) == 1 and set(vertex.times_billed().values()) == {1}


def test_a_job_that_may_not_be_created_stops_and_its_input_file_serves_the_next_run(vertex):
    vertex.knobs.create_status = 403
    errors = answers(vertex, questions(5))
    assert {error.fault for error in errors} == {"refused"} and "denied" in errors[0].problem
    vertex.knobs.create_status = 0
    responses = answers(vertex, [*questions(5), *questions(6, "another")])
    assert len(set(texts(responses))) == 11 and not any(each.bought_before for each in responses)
    assert {number: len(lines) for number, lines in inputs(vertex).items()} == {1: 5, 2: 6}
    assert set(vertex.times_billed().values()) == {1} and len(vertex.jobs) == 2


def test_a_job_whose_creation_was_never_answered_is_looked_for_before_anything_is_sent(vertex):
    vertex.knobs.break_create = True

    async def run():
        async with opened(vertex) as provider:
            errors = await asyncio.gather(*map(provider.generate, questions(5)), return_exceptions=True)
            return errors, await asyncio.gather(*map(provider.generate, questions(5)))

    errors, responses = asyncio.run(run())
    assert {(error.fault, error.doubtful) for error in errors} == {("unavailable", True)}
    assert texts(responses) == says(questions(5)) and all(response.bought_before for response in responses)
    assert vertex.calls["create"] == 1 and set(vertex.times_billed().values()) == {1}


def test_a_model_that_is_not_there_stops(vertex):
    errors = answers(vertex, questions(5), model="gemini-9-nope")
    assert {error.fault for error in errors} == {"refused"} and "404" in errors[0].problem


def test_a_token_that_was_revoked_is_replaced(vertex):
    vertex.knobs.run_s = 0.5

    async def run():
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            vertex.tokens.revoke_all()
            return await asyncio.gather(*tasks)

    assert texts(asyncio.run(run())) == says(questions(5)) and vertex.tokens.grants == 2


# --- after a crash ------------------------------------------------------------------------------

CHILD = """
import asyncio, json, sys
from po_distill.providers.vertex_batch import VertexBatchProvider
from po_distill.records import ProviderSettings, Request

async def run(settings, requests):
    provider = VertexBatchProvider(ProviderSettings.model_validate_json(settings), None)
    asked = [Request.model_validate(request) for request in json.loads(requests)]
    responses = await asyncio.gather(*map(provider.generate, asked))
    await provider.aclose()
    print(json.dumps([response.model_dump(mode="json") for response in responses]))

asyncio.run(run(*sys.argv[1:]))
"""


def start(vertex, requests, **options):
    """A process of its own that asks the requests and prints its responses as JSON."""
    asked = json.dumps([request.model_dump(mode="json") for request in requests])
    command = [sys.executable, "-c", CHILD, settings(vertex, **options).model_dump_json(), asked]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))


def kill_when(process, vertex, what):
    vertex.wait_for(lambda: what() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1].decode()[-500:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_after_its_job_was_created_finds_it_and_pays_nothing_twice(vertex):
    vertex.knobs.pending_s = 3600.0
    kill_when(start(vertex, questions(20)), vertex, lambda: vertex.jobs)
    (job,) = vertex.jobs.values()
    vertex.knobs.pending_s = 0.0
    vertex.finish(job)
    again = start(vertex, [*questions(20), *questions(5, "new")])
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err.decode()[-500:]
    responses = json.loads(out)
    assert [each["text"] for each in responses] == says([*questions(20), *questions(5, "new")])
    assert [each["bought_before"] for each in responses] == [True] * 20 + [False] * 5
    assert {each["price_factor"] for each in responses} == {0.5}
    assert set(vertex.times_billed().values()) == {1} and len(vertex.jobs) == 2
    stem = names(vertex)[0].rpartition("-")[0]
    assert vertex.filters == [f'display_name="{stem}-{number}"' for number in (1, 1, 2)]


def test_a_run_killed_while_its_job_was_created_finds_it_by_its_name(vertex):
    vertex.knobs.created_hold_s = 60.0  # the job is there, the run has not heard of it
    kill_when(start(vertex, questions(20)), vertex, lambda: vertex.jobs)
    vertex.knobs.created_hold_s = 0.0
    responses = answers(vertex, questions(20))
    assert texts(responses) == says(questions(20)) and all(response.bought_before for response in responses)
    assert vertex.calls["create"] == 1 and set(vertex.times_billed().values()) == {1}


def test_a_run_killed_between_upload_and_creation_has_paid_nothing_and_its_file_is_used(vertex):
    vertex.knobs.create_hold_s = 60.0  # the server has not made a job of it when the run dies
    kill_when(start(vertex, questions(20)), vertex, lambda: vertex.calls["create"])
    assert not vertex.jobs and len(inputs(vertex)) == 1
    vertex.knobs.create_hold_s = 0.0
    responses = answers(vertex, questions(20))
    assert texts(responses) == says(questions(20)) and not any(response.bought_before for response in responses)
    assert set(vertex.times_billed().values()) == {1} and len(inputs(vertex)) == 1 and len(vertex.jobs) == 1


def test_an_input_file_without_a_job_whose_requests_are_not_wanted_is_passed_over(vertex):
    vertex.knobs.create_status = 403
    answers(vertex, questions(5, "old"))
    vertex.knobs.create_status = 0
    responses = answers(vertex, questions(5))
    assert texts(responses) == says(questions(5))
    assert [name.rpartition("-")[2] for name in names(vertex)] == ["2"]
    assert [prompt_of(lines[0]) for lines in inputs(vertex).values()] == ["old 0", "question 0"]
    answers(vertex, questions(5, "third"))  # it does not hide the jobs after it, and is never written over
    assert {number: len(lines) for number, lines in inputs(vertex).items()} == {1: 5, 2: 5, 3: 5}


def test_an_input_file_that_another_process_wrote_in_between_is_not_written_over(vertex):
    async def run():
        async with opened(vertex, gather_s=1.0) as provider, opened(vertex) as other:
            alone = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.calls["list"])  # it knows of no file
            first = await asyncio.gather(*map(other.generate, questions(5, "other")))
            return first, await asyncio.gather(*alone)

    vertex.knobs.run_s = 0.0
    other, own = asyncio.run(run())
    assert texts(other) == says(questions(5, "other")) and texts(own) == says(questions(5))
    assert {number: len(lines) for number, lines in inputs(vertex).items()} == {1: 5, 2: 5}


def test_a_line_that_failed_in_a_job_of_an_earlier_run_is_bought_by_this_one(vertex):
    vertex.knobs.error_line_share = 0.2

    async def leave():
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(10)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    responses = answers(vertex, questions(10))
    assert (
        sorted((each.price_factor, each.bought_before) for each in responses) == [(0.5, True)] * 8 + [(1.0, False)] * 2
    )


def test_of_several_jobs_of_one_name_the_one_that_did_not_fail_counts(vertex):
    vertex.knobs.pending_s = 3600.0

    async def leave():
        async with opened(vertex) as provider:
            task = asyncio.gather(*map(provider.generate, questions(5)))
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            task.cancel()

    asyncio.run(leave())
    (job,) = vertex.jobs.values()
    vertex.jobs = {"1": {**job, "state": "JOB_STATE_FAILED"}, "2": {**job, "state": "JOB_STATE_EXPIRED"}, **vertex.jobs}
    vertex.knobs.page_size = 1  # it is on the third page
    vertex.finish(job)
    assert all(response.bought_before for response in answers(vertex, questions(5)))


def test_jobs_of_other_names_in_a_list_are_passed_over(vertex):
    answers(vertex, questions(5))
    vertex.knobs.loose_filter = True
    responses = answers(vertex, [*questions(5), *questions(5, "new")])
    assert [response.bought_before for response in responses] == [True] * 5 + [False] * 5


def test_another_model_project_or_folder_sees_none_of_these_jobs(vertex):
    answers(vertex, questions(5))
    for change in ({"model": "gemini-2.5-pro"}, {"project": "other-project"}, {"bucket": "gs://po-bucket/elsewhere"}):
        assert not any(response.bought_before for response in answers(vertex, questions(5), **change))
    assert len(set(names(vertex))) == 4


# --- cancelling and closing ---------------------------------------------------------------------


def test_a_cancelled_call_leaves_its_job_and_closing_does_not_wait_for_it(vertex):
    vertex.knobs.pending_s = 3600.0

    async def run():
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.calls["poll"])
            for task in tasks[:3]:
                task.cancel()
            await asyncio.wait(tasks[:3])
            started = time.monotonic()
            await provider.aclose()
            return time.monotonic() - started, await asyncio.gather(*tasks[3:], return_exceptions=True)

    closing_s, errors = asyncio.run(run())
    assert closing_s < 1.0
    assert [(error.fault, error.doubtful) for error in errors] == [("unavailable", True)] * 2
    (job,) = vertex.jobs.values()
    vertex.finish(job)
    assert all(response.bought_before for response in answers(vertex, questions(5)))
    assert set(vertex.times_billed().values()) == {1}


def test_a_call_cancelled_before_its_batch_was_sent_costs_nothing(vertex):
    async def run():
        async with opened(vertex, gather_s=0.3) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(7)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.calls["list"])
            await asyncio.sleep(0.1)
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert len(inputs(vertex)[1]) == 6


def test_an_answer_whose_caller_was_cancelled_goes_to_the_next_that_asks(vertex):
    async def run():
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            tasks[0].cancel()
            await asyncio.wait(tasks)
            return await provider.generate(ask("question 0"))

    response = asyncio.run(run())
    assert response.bought_before and set(vertex.times_billed().values()) == {1} and vertex.calls["online"] == 0


# --- Cloud Storage ------------------------------------------------------------------------------


def test_a_foreign_bucket_stops_and_says_which_role_is_missing(vertex):
    errors = answers(vertex, questions(5), bucket="gs://someone-else")
    assert {error.fault for error in errors} == {"refused"}
    assert "403" in errors[0].problem and "Storage Object User" in errors[0].fix and not vertex.jobs


def test_a_storage_that_fails_is_unavailable_and_the_next_send_goes_through(vertex):
    vertex.knobs.storage_503 = 1

    async def run():
        async with opened(vertex) as provider:
            errors = await asyncio.gather(*map(provider.generate, questions(5)), return_exceptions=True)
            return errors, await asyncio.gather(*map(provider.generate, questions(5)))

    errors, responses = asyncio.run(run())
    assert {error.fault for error in errors} == {"unavailable"}
    assert texts(responses) == says(questions(5)) and len(vertex.jobs) == 1


def test_output_that_cannot_be_read_now_and_then_is_read_again(vertex):
    vertex.knobs.run_s = 0.3

    async def run():
        async with opened(vertex) as provider:
            tasks = [asyncio.create_task(provider.generate(request)) for request in questions(5)]
            await asyncio.to_thread(vertex.wait_for, lambda: vertex.jobs)
            vertex.knobs.storage_503 = 3
            return await asyncio.gather(*tasks)

    assert texts(asyncio.run(run())) == says(questions(5)) and vertex.knobs.storage_503 == 0


def test_an_input_file_of_more_than_8_mib_is_uploaded_whole(vertex):
    vertex.knobs.answer = lambda body: "short"
    requests = [ask(f"{number} " + "line\u2028süß 東京 🌱\n" * 40_000) for number in range(6)]
    assert texts(answers(vertex, requests)) == ["short"] * 6
    assert vertex.calls["PUT storage"] == 1 and len(vertex.jobs) == 1 and vertex.calls["online"] == 0


def test_without_an_address_of_its_own_the_storage_is_asked_with_the_credentials(vertex, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", vertex.base_url)
    vertex.knobs.storage_is_open = False
    assert texts(answers(vertex, questions(5), storage_base_url=None)) == says(questions(5))
    refused = answers(vertex, questions(5), bucket="gs://po-bucket/new")  # an emulator is told no credentials
    assert {error.fault for error in refused} == {"refused"} and "no credentials" in refused[0].problem


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bucket": None}, "needs the option bucket"),
        ({"bucket": "po-bucket"}, "names no bucket"),
        ({"bucket": "gs://Po_Bucket/x"}, "names no bucket"),
        ({"bucket": 7}, "needs the option bucket"),
        ({"bucket": "https://po-bucket"}, "names no bucket"),
        ({"nope": 1}, "no option 'nope'"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": True}, "max_batch"),
        ({"min_batch": 2.5}, "min_batch"),
        ({"max_batch": 4, "min_batch": 5}, "allow no job"),
        ({"gather_s": 0}, "gather_s"),
        ({"poll_s": "30"}, "poll_s"),
        ({"poll_s": float("inf")}, "poll_s"),
        ({"storage_base_url": "http://storage.example.com"}, "storage_base_url"),
        ({"storage_base_url": "ftp://localhost"}, "storage_base_url"),
        ({"storage_base_url": "https://me:pass@example.com"}, "storage_base_url"),
        ({"storage_base_url": 1}, "storage_base_url"),
        ({"project": None}, "project"),
        ({"credentials_path": "/no/such/file"}, "credentials_path"),
        ({"timeout_s": -1}, "timeout_s"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(vertex, monkeypatch, options, words):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(SettingsError, match=words):
        VertexBatchProvider(settings(vertex, **options), HaikuRole())


def test_opening_touches_no_network_and_closing_one_that_was_never_asked_is_harmless(vertex):
    async def run():
        provider = VertexBatchProvider(settings(vertex), HaikuRole())
        await provider.aclose()
        await provider.aclose()
        with pytest.raises(ProviderError, match="closed"):
            await provider.generate(ask("x"))

    asyncio.run(run())
    assert not vertex.calls


def test_without_google_cloud_storage_the_error_names_the_extra(vertex, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage")
    (error,) = answers(vertex, questions(1))
    assert isinstance(error, MissingExtraError) and "po-distill[vertex]" in error.fix
