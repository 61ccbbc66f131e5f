import logging
import pickle
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill import plugins
from po_distill.embeddings.word_llama import WordLlamaEmbedding
from po_distill.errors import MissingExtraError, PluginError
from po_distill.meaning import _opened, open_meaning


class Directions:
    name = "two directions"

    def embed(self, texts):
        return [[1.0, 0.0] if "north" in text else [-1.0, 0.0] if "south" in text else [0.0, 1.0] for text in texts]


def test_shared_words_are_compared_and_called_what_they_are():
    words = open_meaning("words")
    assert words("add map views", "add map views") == pytest.approx(1.0)
    assert 0.0 < words("add map views", "remove map views") < 1.0
    assert words("one", "two") == 0.0
    assert "synonyms are not known" in words.name


def test_a_plugins_vectors_are_compared_and_opposite_ones_agree_in_nothing(monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda group, name: {("embeddings", "directions"): Directions}[group, name])
    _opened.cache_clear()
    meaning = pickle.loads(pickle.dumps(open_meaning("directions")))
    assert meaning.name == "two directions"
    assert (meaning("north", "northern"), meaning("north", "south"), meaning("north", "up")) == (1.0, 0.0, 0.0)
    _opened.cache_clear()


def test_wordllama_is_named_needs_no_network_and_knows_synonyms(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    handlers = list(logging.getLogger().handlers)
    meaning, words = open_meaning("wordllama"), open_meaning("words")
    assert meaning.name.startswith("WordLlama ")
    said, reworded, other = "Remove the export of spreadsheets", "Delete spreadsheet downloads", "Offer voice notes"
    assert words(said, reworded) == 0.0
    assert meaning(said, reworded) > meaning(said, other) + 0.2
    assert meaning(said, said) == pytest.approx(1.0)
    assert logging.getLogger().handlers == handlers  # the package would set logging up for the whole program


def test_wordllama_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingExtraError, match="wordllama") as raised:
        WordLlamaEmbedding()
    assert "po-distill[meaning]" in raised.value.fix


def test_an_embedding_model_that_nobody_registered_is_named():
    with pytest.raises(PluginError, match="nowhere"):
        open_meaning("nowhere")


@given(st.text(max_size=40), st.text(max_size=40))
def test_agreement_is_the_same_either_way_and_no_text_agrees_only_with_none(one, other):
    words = open_meaning("words")
    assert words(one, other) == pytest.approx(words(other, one))
    assert -1e-9 <= words(one, other) <= 1 + 1e-9
    assert words("", " ") == 1.0
