import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill.languages import UNKNOWN, language_of
from po_distill.roles.product_owner.role import ProductOwnerRole

SENTENCES = {
    "en": "A clinic scheduler for rural clinics that helps the staff to plan their shifts with fewer calls.",
    "es": "Una agenda para las clínicas rurales que ayuda al personal a planificar los turnos con menos llamadas.",
    "pt": "Uma agenda para as clínicas rurais que ajuda a equipe a planejar os turnos com menos ligações e não falha.",
    "fr": "Un agenda pour les cliniques rurales qui aide le personnel dans les tours avec moins d'appels.",
    "de": "Ein Terminplaner für ländliche Praxen, der dem Personal hilft, die Schichten mit weniger Anrufen zu planen.",
    "it": "Un'agenda per le cliniche rurali che aiuta il personale a pianificare i turni con meno chiamate.",
    "nl": "Een planner voor de praktijken op het land, die het personeel helpt om de diensten te plannen.",
}


@pytest.mark.parametrize("language", list(SENTENCES))
def test_a_sentence_is_told_by_its_small_words(language: str) -> None:
    assert language_of(SENTENCES[language]) == language
    assert language_of(SENTENCES[language].upper()) == language


def test_the_concepts_of_the_generator_are_english() -> None:
    concepts = ProductOwnerRole().generate_concepts(100, seed=5)
    assert [language_of(concept.concept) for concept in concepts].count("en") >= 95
    assert {language_of(concept.concept) for concept in concepts} <= {"en", UNKNOWN}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ticket Desk",  # no small word
        "the portal",  # one is too few
        "Система записи для сельских клиник и больниц",  # none of the languages that it knows
        "农村诊所的排班系统,帮助员工安排班次",
        f"{SENTENCES['en']} {SENTENCES['de']}",  # two, and neither the text's
        "12 34 56 !!! ...",
        "\x00\ud800\u200b",
    ],
)
def test_what_its_small_words_do_not_tell_is_unknown(text: str) -> None:
    assert language_of(text) == UNKNOWN


@given(st.text())
def test_any_text_has_a_language_or_none(text: str) -> None:
    assert language_of(text) in {*SENTENCES, UNKNOWN}


def test_of_a_long_text_the_beginning_decides() -> None:
    assert language_of(SENTENCES["de"] * 60 + SENTENCES["en"] * 10_000) == "de"
