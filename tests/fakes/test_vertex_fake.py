"""The fake of Vertex AI, asked with plain HTTP: what it refuses, what it answers, and what it bills."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

import aiohttp

from fakes.vertex import FakeVertex, Knobs
from fakes.vertex_answers import decided
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole("json")
CONCEPTS = ROLE.generate_concepts(30, seed=5)
SCHEMA = ROLE.json_schema()
JSON_CONFIG = {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
TREE = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}


def prompt_about(concept):
    return ROLE.render(concept)[1].content


def body(text="What is it?", **config):
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}


async def post(session, fake, sent, *, model="gemini-2.5-pro", project="test-project", token=None, headers=None):
    """(status, JSON, headers) of a generateContent call; a token of the fake's own unless one is given."""
    path = f"/v1/projects/{project}/locations/us-central1/publishers/google/models/{model}:generateContent"
    token = fake.issue_token() if token is None else token
    sent_headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    async with session.post(fake.base_url + path, data=data, headers={**sent_headers, **(headers or {})}) as response:
        return response.status, await response.json(), response.headers


def ask(fake, *bodies, timeout_s=5.0, **how):
    """What each body is answered with, sent at once; exceptions as they are."""

    async def run():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout_s)) as session:
            return await asyncio.gather(*(post(session, fake, one, **how) for one in bodies), return_exceptions=True)

    return asyncio.run(run())


def control(fake, path, sent=None):
    async def run():
        async with (
            aiohttp.ClientSession() as session,
            session.request("GET" if sent is None else "POST", fake.base_url + path, json=sent) as response,
        ):
            return response.status, await response.json()

    return asyncio.run(run())


def text_of(answer):
    return answer[1]["candidates"][0]["content"]["parts"][0]["text"]


@pytest.fixture(scope="module")
def fake():
    with FakeVertex() as running:
        yield running


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "ya29.unknown"])
def test_a_missing_or_unknown_token_is_unauthenticated(fake, token):
    ((status, answer, _),) = ask(fake, body(), token=token)
    assert (status, answer["error"]["code"], answer["error"]["status"]) == (401, 401, "UNAUTHENTICATED")


def test_an_expired_token_is_unauthenticated():
    with FakeVertex(Knobs(token_lifetime_s=0.2)) as fake:
        token = fake.issue_token()
        assert ask(fake, body(), token=token)[0][0] == 200
        time.sleep(0.25)
        assert ask(fake, body(), token=token)[0][0] == 401


def test_another_project_is_denied_and_an_unknown_model_not_found(fake):
    assert ask(fake, body(), project="other-project")[0][1]["error"]["status"] == "PERMISSION_DENIED"
    ((status, answer, _),) = ask(fake, body(), model="gemini-9")
    assert (status, answer["error"]["status"]) == (404, "NOT_FOUND")
    assert "projects/test-project/locations/us-central1/publishers/google/models/gemini-9" in str(answer)


_USER = {"role": "user", "parts": [{"text": "x"}]}
_DEEP = {"type": "string"}
for _ in range(14):
    _DEEP = {"type": "array", "items": _DEEP}
_WIDE = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(401)}}


def json_schema(schema):
    return {**_USER_BODY, "generationConfig": {**JSON_CONFIG, "responseJsonSchema": schema}}


_USER_BODY = {"contents": [_USER]}
REFUSED = {
    "no JSON": (b"{", "Invalid JSON payload"),
    "no object": (b"[]", "Invalid JSON payload"),
    "an unknown name": ({**_USER_BODY, "temprature": 1}, 'Unknown name "temprature"'),
    "an unknown name below": (body(maxTokens=1), "Unknown name \"maxTokens\" at 'generation_config'"),
    "an unknown name in a part": ({"contents": [{"role": "user", "parts": [{"txt": "x"}]}]}, 'Unknown name "txt"'),
    "an unknown name in thinking": (body(thinkingConfig={"thinkingTokens": 1}), 'Unknown name "thinkingTokens"'),
    "a wrong type": (body(temperature="hot"), "Invalid value at 'generation_config.temperature'"),
    "a list that is none": ({"contents": _USER}, "not repeating"),
    "a seed of 33 bits": (body(seed=2**32), "TYPE_INT32"),
    "both spellings of one name": (body(maxOutputTokens=5, max_output_tokens=5), "set twice"),
    "no contents": ({"contents": []}, "at least one contents"),
    "no role": ({"contents": [{"parts": [{"text": "x"}]}]}, "valid role: user, model"),
    "the role assistant": ({"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}, "valid role: user, model"),
    "no parts": ({"contents": [{"role": "user", "parts": []}]}, "at least one parts"),
    "an empty text": ({"contents": [{"role": "user", "parts": [{"text": ""}]}]}, "text parameter"),
    "a label in upper case": ({**_USER_BODY, "labels": {"Team": "a"}}, "Label"),
    "a label's value with a space": ({**_USER_BODY, "labels": {"team": "a b"}}, "Label"),
    "a label that is a number": ({**_USER_BODY, "labels": {"team": 3}}, "Label"),
    "too hot": (body(temperature=2.1), "temperature"),
    "too cold": (body(temperature=-0.1), "temperature"),
    "top_p above 1": (body(topP=1.1), "topP"),
    "more tokens than the model gives": (body(maxOutputTokens=65_537), "maxOutputTokens value of 65537"),
    "no tokens": (body(maxOutputTokens=0), "maxOutputTokens value of 0"),
    "two candidates": (body(candidateCount=2), "one candidate"),
    "budget and level": (body(thinkingConfig={"thinkingBudget": 512, "thinkingLevel": "LOW"}), "only one of"),
    "a budget below the model's": (body(thinkingConfig={"thinkingBudget": 0}), "between 128 and 32768"),
    "a level for 2.5": (body(thinking_config={"thinking_level": "LOW"}), "level is not supported"),
    "an unknown level": (body(thinkingConfig={"thinkingLevel": "GIGANTIC"}), "TYPE_ENUM"),
    "both schemas": (body(**JSON_CONFIG, responseSchema={"type": "OBJECT"}), "Only one of response_schema"),
    "a schema without JSON": (body(responseJsonSchema=TREE), "needs responseMimeType application/json"),
    "a type of response": (body(responseMimeType="application/xml"), "responseMimeType"),
    "JSON Schema as responseSchema": (
        body(responseMimeType="application/json", responseSchema={"type": "object", "additionalProperties": False}),
        'Unknown name "additionalProperties"',
    ),
    "a reference in responseSchema": (
        body(responseMimeType="application/json", responseSchema={"properties": {"a": {"$ref": "#/x"}}}),
        'Unknown name "$ref"',
    ),
    "an unknown type in responseSchema": (
        body(responseMimeType="application/json", responseSchema={"type": "TEXT"}),
        "TYPE_ENUM",
    ),
    "a schema too deep": (json_schema(_DEEP), "too many states"),
    "a schema too wide": (json_schema(_WIDE), "too many states"),
    "a schema of an unknown type": (json_schema({"type": "nonsense"}), "unknown type"),
    "a reference to nothing": (json_schema({"$ref": "#/$defs/Nothing"}), "does not define"),
    "a reference with company": (
        json_schema({**TREE, "properties": {"a": {"$ref": "#/$defs/A", "description": "x"}}}),
        "no other properties",
    ),
    "a prompt too long": (body("x" * 4_200_000), "exceeds the maximum number of tokens allowed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(fake, what):
    sent, words = REFUSED[what]
    ((status, answer, _),) = ask(fake, sent)
    assert (status, answer["error"]["code"], answer["error"]["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert words in answer["error"]["message"]


def test_a_budget_for_gemini_3_is_refused(fake):
    ((status, answer, _),) = ask(fake, body(thinkingConfig={"thinkingBudget": 512}), model="gemini-3.8-flash")
    assert status == 400 and "budget is not supported" in answer["error"]["message"]


def test_a_refused_request_is_not_billed_but_counted():
    with FakeVertex() as fake:
        ask(fake, {"contents": []})
        assert fake.bill() == {
            "calls": 1, "billed": 0, "nanousd": 0, "by_digest": {}, "statuses": {"400": 1}, "in_flight": 0,
            "most_in_flight": 1,
        }  # fmt: skip


# --- answers ------------------------------------------------------------------------------------


def test_both_spellings_of_names_are_one_request():
    camel = body("x", maxOutputTokens=900, thinkingConfig={"thinkingBudget": 512})
    snake = {
        "contents": camel["contents"],
        "generation_config": {"max_output_tokens": 900, "thinking_config": {"thinking_budget": 512}},
    }
    with FakeVertex() as fake:
        assert [one[0] for one in ask(fake, camel, snake)] == [200, 200]
        assert list(fake.bill()["by_digest"].values()) == [2]


def test_an_answer_has_all_that_the_real_one_has():
    with FakeVertex(Knobs(thinking_tokens=20), answer=lambda _: "y" * 36) as fake:
        ((status, answer, headers),) = ask(fake, body("x" * 80))
    assert status == 200 and headers["Content-Type"] == "application/json; charset=UTF-8"
    assert answer["candidates"][0]["content"] == {"role": "model", "parts": [{"text": "y" * 36}]}
    assert answer["candidates"][0]["finishReason"] == "STOP" and "avgLogprobs" in answer["candidates"][0]
    assert answer["usageMetadata"] == {
        "promptTokenCount": 21, "candidatesTokenCount": 10, "thoughtsTokenCount": 20, "totalTokenCount": 51,
        "trafficType": "ON_DEMAND",
    }  # fmt: skip
    assert answer["modelVersion"] == "gemini-2.5-pro" and answer["responseId"] and answer["createTime"].endswith("Z")


def test_a_product_owner_s_prompt_is_answered_by_the_rules_in_the_form_that_was_asked_for(fake):
    for concept in CONCEPTS[:5]:
        as_json, fenced = ask(fake, body(prompt_about(concept), **JSON_CONFIG), body(prompt_about(concept)))
        assert text_of(as_json).startswith("{") and text_of(fenced).startswith("```yaml VISION")
        for role, answer in ((ROLE, as_json), (ProductOwnerRole(), fenced)):
            score = role.score(concept, text_of(answer))
            assert score.valid and score.value >= 0.85 and score.label == concept.planted_label


def test_another_prompt_gets_an_answer_of_the_schema(fake):
    ((_, answer, _),) = ask(fake, body("What?", responseMimeType="application/json", responseJsonSchema=TREE))
    assert json.loads(answer["candidates"][0]["content"]["parts"][0]["text"]) == {"a": "text"}
    openapi = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "nullable": True}}}
    ((_, answer, _),) = ask(fake, body("What?", responseMimeType="application/json", responseSchema=openapi))
    assert json.loads(answer["candidates"][0]["content"]["parts"][0]["text"]) == {"n": 1}


def test_thinking_comes_out_of_the_same_limit_as_the_text():
    with FakeVertex(Knobs(thinking_tokens=300), answer=lambda _: "y" * 1000) as fake:
        whole, cut, nothing = ask(
            fake, body(maxOutputTokens=1000), body(maxOutputTokens=400), body(maxOutputTokens=300)
        )
        ((_, bounded, _),) = ask(fake, body(maxOutputTokens=400, thinkingConfig={"thinkingBudget": 128}))
    assert text_of(whole) == "y" * 1000
    assert 0 < len(text_of(cut)) <= 400 and cut[1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert nothing[1]["candidates"][0]["content"] == {"role": "model"}
    assert nothing[1]["usageMetadata"]["thoughtsTokenCount"] == 300
    assert bounded["usageMetadata"]["thoughtsTokenCount"] == 128


def test_the_bill_is_exact_in_nano_dollars():
    with FakeVertex(Knobs(thinking_tokens=5), answer=lambda _: "y" * 36) as fake:
        ask(fake, body("x" * 80))
        assert fake.bill()["nanousd"] == 21 * 1250 + 15 * 10_000
        ask(fake, body("x" * 80), model="gemini-2.5-flash")
        assert fake.bill()["nanousd"] == 21 * 1250 + 15 * 10_000 + 21 * 300 + 15 * 2500
        before = fake.bill()["nanousd"]
        ask(fake, body("x" * 800_004))
        assert fake.bill()["nanousd"] - before == 200_002 * 2500 + 15 * 15_000


# --- knobs --------------------------------------------------------------------------------------


def test_shares_are_about_what_was_asked_and_repeat():
    knobs = Knobs(seed=3)
    found = [decided(knobs, 0.2, "x", number) for number in range(2000)]
    assert 330 < sum(found) < 470
    assert found == [decided(knobs, 0.2, "x", number) for number in range(2000)]
    assert found != [decided(Knobs(seed=4), 0.2, "x", number) for number in range(2000)]


def test_throttling_and_failures_befall_arrivals_so_that_a_retry_passes():
    with FakeVertex(Knobs(share_429=0.3, share_5xx=0.3, retry_after=2.0)) as fake:
        found = ask(fake, *[body("the same")] * 60)
        statuses = [status for status, _, _ in found]
        assert {200, 429, 503} == set(statuses)
        assert {headers.get("Retry-After") for status, _, headers in found if status == 429} == {"2"}
        assert fake.bill()["billed"] == statuses.count(200)
        assert fake.bill()["statuses"]["429"] == statuses.count(429)


def test_a_quota_lets_a_burst_through_and_then_its_rate():
    with FakeVertex(Knobs(quota_rps=20.0, quota_burst=5)) as fake:
        first = [status for status, _, _ in ask(fake, *[body(str(number)) for number in range(20)])]
        assert 5 <= first.count(200) <= 8 and first.count(429) == 20 - first.count(200)
        time.sleep(0.2)
        second = [status for status, _, _ in ask(fake, *[body(str(number)) for number in range(20)])]
        assert 3 <= second.count(200) <= 8


def test_a_truncated_or_dropped_answer_breaks_the_connection_and_is_billed():
    for knob, error in (
        ("truncate_share", aiohttp.ClientPayloadError),
        ("drop_share", aiohttp.ServerDisconnectedError),
    ):
        with FakeVertex(Knobs(**{knob: 1.0})) as fake:
            (found,) = ask(fake, body())
            assert isinstance(found, error)
            assert fake.bill()["billed"] == 1 and fake.bill()["nanousd"] > 0


def test_what_was_accepted_is_billed_and_finished_though_its_client_went_away():
    with FakeVertex(Knobs(latency_s=0.4)) as fake:
        (found,) = ask(fake, body(), timeout_s=0.1)
        assert isinstance(found, TimeoutError)
        assert fake.bill()["billed"] == 1 and fake.bill()["in_flight"] == 1
        time.sleep(0.5)
        assert fake.bill()["in_flight"] == 0


def test_a_hung_call_never_ends_and_is_billed():
    with FakeVertex(Knobs(hang_share=1.0)) as fake:
        (found,) = ask(fake, body(), timeout_s=0.3)
        assert isinstance(found, TimeoutError) and fake.bill()["billed"] == 1


def test_a_recited_answer_comes_with_another_seed():
    with FakeVertex(Knobs(recitation_share=0.5)) as fake:
        found = [ask(fake, *(body(str(number), seed=seed) for seed in range(12))) for number in range(4)]
        reasons = [[one[1]["candidates"][0]["finishReason"] for one in answers] for answers in found]
        assert all({"STOP", "RECITATION"} == set(row) for row in reasons)
        again = [one[1]["candidates"][0]["finishReason"] for one in ask(fake, *(body("0", seed=n) for n in range(12)))]
        assert again == reasons[0]
        recited = next(one for one in found[0] if one[1]["candidates"][0]["finishReason"] == "RECITATION")
        assert "parts" not in recited[1]["candidates"][0]["content"]


def test_a_limit_at_or_below_cut_below_halves_the_text():
    with FakeVertex(Knobs(cut_below=2048), answer=lambda _: "abcdef") as fake:
        short, long = ask(fake, body(maxOutputTokens=2048), body(maxOutputTokens=4096))
    assert (text_of(short), short[1]["candidates"][0]["finishReason"]) == ("abc", "MAX_TOKENS")
    assert (text_of(long), long[1]["candidates"][0]["finishReason"]) == ("abcdef", "STOP")


def test_blocked_prompts_and_unsafe_answers_stay_so_for_their_concept():
    with FakeVertex(Knobs(blocked_prompt_share=1.0)) as fake:
        ((status, answer, _),) = ask(fake, body())
        assert status == 200 and "candidates" not in answer
        assert answer["promptFeedback"]["blockReason"] == "PROHIBITED_CONTENT"
    with FakeVertex(Knobs(safety_share=0.5)) as fake:
        prompts = [prompt_about(concept) for concept in CONCEPTS]
        sets = [ask(fake, *(body(prompt, seed=seed) for prompt in prompts)) for seed in (1, 2)]
        first, second = ([one[1]["candidates"][0]["finishReason"] for one in found] for found in sets)
        assert first == second and {"STOP", "SAFETY"} == set(first)


def test_the_review_is_left_out_of_free_text_only():
    with FakeVertex(Knobs(omit_review_share=1.0)) as fake:
        free, as_json = ask(fake, body(prompt_about(CONCEPTS[0])), body(prompt_about(CONCEPTS[0]), **JSON_CONFIG))
    assert "VISION" in text_of(free) and "REVIEW" not in text_of(free)
    assert free[1]["candidates"][0]["finishReason"] == "STOP"
    assert ROLE.score(CONCEPTS[0], text_of(as_json)).valid


def test_poor_answers_are_valid_but_score_below_the_threshold_for_every_concept():
    with FakeVertex(Knobs(low_score_share=1.0)) as fake:
        for config, role in ((JSON_CONFIG, ROLE), ({}, ProductOwnerRole())):
            for concept, answer in zip(
                CONCEPTS, ask(fake, *(body(prompt_about(one), **config) for one in CONCEPTS)), strict=True
            ):
                score = role.score(concept, text_of(answer))
                assert score.valid and score.value < 0.85, concept.concept_id


def test_a_regenerated_request_is_decided_anew_with_the_same_share():
    def again(concept):
        sent = body(prompt_about(concept), **JSON_CONFIG)
        sent["contents"] += [
            {"role": "model", "parts": [{"text": "{}"}]},
            {"role": "user", "parts": [{"text": "More."}]},
        ]
        return sent

    with FakeVertex(Knobs(low_score_share=0.5)) as fake:
        first = ask(fake, *(body(prompt_about(one), **JSON_CONFIG) for one in CONCEPTS))
        second = ask(fake, *(again(one) for one in CONCEPTS))
    poor = [
        [ROLE.score(one, text_of(answer)).value < 0.85 for one, answer in zip(CONCEPTS, found, strict=True)]
        for found in (first, second)
    ]
    assert all(5 < sum(row) < 25 for row in poor) and poor[0] != poor[1]


def test_latency_varies_by_arrival_around_its_median():
    fake = FakeVertex(Knobs(latency_s=0.3, latency_sigma=0.5))
    waits = sorted(fake._latency_s(n) for n in range(500))
    assert 0.25 < waits[250] < 0.35 and waits[475] > 2 * waits[25]
    assert waits == sorted(fake._latency_s(n) for n in range(500))


def test_knobs_are_turned_while_it_runs(fake):
    assert control(fake, "/_control/knobs", {"share_429": 1.0})[1]["share_429"] == 1.0
    assert ask(fake, body())[0][0] == 429
    assert control(fake, "/_control/knobs", {"share_429": 0.0})[0] == 200
    assert ask(fake, body())[0][0] == 200
    assert control(fake, "/_control/knobs", {"share_430": 1.0})[0] == 400


# --- the token endpoint -------------------------------------------------------------------------


def grant(fake, **form):
    async def run():
        async with aiohttp.ClientSession() as session, session.post(f"{fake.base_url}/token", data=form) as response:
            return response.status, await response.json()

    return asyncio.run(run())


def test_a_refresh_token_gives_an_access_token_and_an_unknown_one_none():
    with FakeVertex(refresh_tokens=["good"]) as fake:
        form = {"grant_type": "refresh_token", "client_id": "a", "client_secret": "b"}
        status, given = grant(fake, **form, refresh_token="good")
        assert status == 200 and given["expires_in"] == 3600
        assert ask(fake, body(), token=given["access_token"])[0][0] == 200
        assert grant(fake, **form, refresh_token="bad")[1]["error"] == "invalid_grant"
        assert grant(fake, grant_type="password")[0] == 400


def assertion(key, **changes):
    """A signed JWT, as a service account sends it."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    now = int(time.time())
    claims = {
        "iss": "me@x", "aud": "https://oauth2.googleapis.com/token", "iat": now, "exp": now + 3600,
        "scope": "https://www.googleapis.com/auth/cloud-platform", **changes,
    }  # fmt: skip
    signed = part({"alg": "RS256", "typ": "JWT"}) + b"." + part(claims)
    signature = base64.urlsafe_b64encode(key.sign(signed, PKCS1v15(), SHA256())).rstrip(b"=")
    return (signed + b"." + signature).decode()


def test_a_service_account_s_signature_and_claims_are_checked():
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key, other = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    kind = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    with FakeVertex(service_accounts={"me@x": pem.decode()}) as fake:
        status, given = grant(fake, grant_type=kind, assertion=assertion(key))
        assert status == 200 and ask(fake, body(), token=given["access_token"])[0][0] == 200
        own = assertion(key, aud=f"{fake.base_url}/token")
        assert grant(fake, grant_type=kind, assertion=own)[0] == 200
        for bad in (
            assertion(other),
            assertion(key, iss="you@x"),
            assertion(key, aud="https://elsewhere.example/token"),
            assertion(key, exp=int(time.time()) - 1),
            assertion(key, exp=int(time.time()) + 7200),
            assertion(key, scope="email"),
            "no.jwt",
        ):
            assert grant(fake, grant_type=kind, assertion=bad)[0] == 400


# --- the ledger, load, and a process of its own -------------------------------------------------


def test_the_ledger_has_a_line_before_the_answer_comes(tmp_path):
    ledger = tmp_path / "bill.jsonl"
    with FakeVertex(Knobs(latency_s=0.5), ledger=ledger) as fake:
        (found,) = ask(fake, body(prompt_about(CONCEPTS[0])), timeout_s=0.2)
        assert isinstance(found, TimeoutError)
        (line,) = map(json.loads, ledger.read_text().splitlines())
        assert line["n"] == 1 and line["status"] == 200 and line["nanousd"] == fake.bill()["nanousd"] > 0
        assert line["digest"] in fake.bill()["by_digest"] and abs(line["arrived"] - time.time()) < 5
        assert CONCEPTS[0].concept.startswith(line["concept"])


@contextmanager
def process(*arguments):
    """The fake as a process of its own: (its line of JSON, the process)."""
    running = subprocess.Popen(
        [sys.executable, "-m", "fakes.vertex", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        yield json.loads(running.stdout.readline()), running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


class Address:
    """Of a fake in another process, as `ask` and `control` take it."""

    def __init__(self, base_url):
        self.base_url = base_url

    def issue_token(self):
        return "T"


def test_as_a_process_it_serves_64_at_a_time_at_more_than_400_a_second(tmp_path):
    ledger = tmp_path / "bill.jsonl"
    with process("--ledger", str(ledger), "--token", "T", "--project", "p") as (said, running):
        fake = Address(said["base_url"])
        assert said["port"] == int(said["base_url"].rpartition(":")[2])
        prompts = [prompt_about(concept) for concept in CONCEPTS]
        assert control(fake, "/_control/prime", {"prompts": prompts})[1] == {"primed": 30}
        bodies = [json.dumps(body(prompts[n % 30], **JSON_CONFIG, seed=n)).encode() for n in range(320)]

        async def served():
            connector = aiohttp.TCPConnector(limit=64)
            async with aiohttp.ClientSession(connector=connector) as session:
                await asyncio.gather(*(post(session, fake, one, project="p") for one in bodies))

        # The server's own processor time: the wall clock also counts this client, on processors that others use.
        before = cpu_s(running.pid)
        asyncio.run(served())
        took_s = cpu_s(running.pid) - before
        assert len(bodies) / took_s > 400

        control(fake, "/_control/knobs", {"latency_s": 0.3})
        ask(fake, *bodies[:64], project="p")
        bill = control(fake, "/_control/bill")[1]
        assert (bill["calls"], bill["billed"], bill["most_in_flight"]) == (384, 384, 64)
        assert sorted(bill["by_digest"].values()) == [1] * 256 + [2] * 64
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert sum(line["nanousd"] for line in lines) == bill["nanousd"] and len(lines) == 384
        running.send_signal(signal.SIGTERM)
        assert running.wait(5) == 0


def cpu_s(pid):
    psutil = pytest.importorskip("psutil")
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
