import sys
import types

import pytest

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.errors import PODistillError, SettingsError
from po_distill.metric import Fields, load_metric, score, self_test, value_of
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.scoring import product_owner_metric

ROLE = HaikuRole()
CONCEPT = haiku_concept(1)


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("a_users_metrics")
    monkeypatch.setitem(sys.modules, "a_users_metrics", made)
    return made


def lines_share(example, prediction, trace=None):
    return min(len(prediction.haiku.get("lines", [])), 3) / 3


def test_fields_are_read_as_attributes_and_as_keys():
    fields = Fields({"vision": "v"})
    assert fields.vision == fields["vision"] == fields.get("vision") == "v"
    assert not hasattr(fields, "review")
    assert getattr(fields, "review", 7) == 7


def test_a_metric_is_loaded_by_its_dotted_path(module):
    module.metric = lines_share
    module.inner = types.SimpleNamespace(metric=lines_share)
    assert load_metric("a_users_metrics:metric") is lines_share
    assert load_metric("a_users_metrics:inner.metric") is lines_share
    path = "po_distill.roles.product_owner.scoring:product_owner_metric"
    assert load_metric(path) is product_owner_metric


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("metric", "no dotted path"),
        ("a_users_metrics:", "no dotted path"),
        (":metric", "no dotted path"),
        ("a_users_metrics:gone", "AttributeError"),
        ("no_such_package.x:metric", "ModuleNotFoundError"),
        ("a_users_metrics:number", "is a int, no function"),
        ("..relative:metric", "does not load"),
    ],
)
def test_a_metric_that_is_none_is_refused_with_its_path(module, path, says):
    module.number = 7
    with pytest.raises(SettingsError, match=says) as caught:
        load_metric(path)
    assert "package.module:function" in caught.value.fix


def test_a_module_that_breaks_while_it_is_imported_is_a_problem_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_metrics.py").write_text("raise RuntimeError('no data')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="RuntimeError: no data"):
        load_metric("broken_metrics:metric")


def test_the_value_is_that_of_the_metric_and_the_rest_the_roles():
    found = score(ROLE, lambda e, p: 0.25, CONCEPT, haiku("winter"))
    assert found.value == 0.25
    assert found.violations == ROLE.score(CONCEPT, haiku("winter")).violations
    assert score(ROLE, None, CONCEPT, haiku("spring")) == ROLE.score(CONCEPT, haiku("spring"))


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan"), float("inf")])
def test_a_value_that_is_no_score_is_refused_with_the_concept(value):
    with pytest.raises(SettingsError, match=f"answer to {CONCEPT.concept_id}"):
        value_of(lambda e, p: value, ROLE, CONCEPT, "")


@pytest.mark.parametrize("metric", [lambda e, p: "high", lambda e, p: None, lambda e, p: p.absent, lambda e: 1.0])
def test_a_metric_that_breaks_is_named_with_the_fields_that_it_gets(metric):
    with pytest.raises(SettingsError, match="The metric broke on") as caught:
        value_of(metric, ROLE, CONCEPT, "")
    assert "an example with wanted and a prediction with haiku" in caught.value.fix


def test_numbers_of_other_kinds_are_scores():
    assert value_of(lambda e, p: True, ROLE, CONCEPT, "") == 1.0
    assert value_of(lambda e, p: 1, ROLE, CONCEPT, "") == 1.0


def test_the_self_test_passes_for_metrics_that_tell_a_sound_answer_from_an_empty_one():
    self_test(ROLE, None)
    self_test(ROLE, lines_share)
    self_test(ProductOwnerRole(), product_owner_metric)
    for contract in ProductOwnerRole.contracts:
        self_test(ProductOwnerRole(contract), product_owner_metric)


@pytest.mark.parametrize(
    "metric",
    [lambda e, p: 0.0, lambda e, p: 1.0, lambda e, p: 0.85 if p.haiku else 0.0, lambda e, p: 1.0 if p.haiku else 0.1],
)
def test_the_self_test_fails_where_a_metric_does_not_tell_them_apart(metric):
    with pytest.raises(PODistillError, match="self-test failed"):
        self_test(ROLE, metric)


def test_the_self_test_fails_where_a_field_has_another_name():
    with pytest.raises(PODistillError, match="broke"):
        self_test(ProductOwnerRole(), lambda example, prediction: len(prediction.vision) > 0)


def test_the_roles_own_self_test_comes_first():
    class Broken(HaikuRole):
        def self_test(self):
            raise PODistillError("The role is broken.", "Mend it.")

    with pytest.raises(PODistillError, match="role is broken"):
        self_test(Broken(), lines_share)
