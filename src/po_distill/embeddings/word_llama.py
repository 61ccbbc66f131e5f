"""WordLlama: 256 dimensions a token, taken out of large models' tables and trained further; a text is their mean.

The package `wordllama` (MIT) carries its 16 MB of weights and the tokenizer: nothing is downloaded. It knows synonyms,
and not the order of words. https://github.com/dleemiller/WordLlama
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from po_distill.errors import MissingExtraError


class WordLlamaEmbedding:
    """The model of the installed package. Raises MissingExtraError where there is none."""

    def __init__(self) -> None:
        package = _imported()
        # As its cache, the package's folder has both files; by itself the package misses its tokenizer, and downloads.
        self._model = package.WordLlama.load(cache_dir=Path(package.__file__).parent, disable_download=True)
        self.name = f"WordLlama {version('wordllama')} (256 dimensions)"

    def embed(self, texts: Sequence[str]) -> Any:
        """(texts, 256), float32; not normalised."""
        return self._model.embed(list(texts))


def _imported() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import wordllama
    except ImportError as error:
        raise MissingExtraError("wordllama", "meaning", "Comparing meanings with WordLlama") from error
    finally:  # it sets logging up for the whole program
        root.handlers[:] = handlers
        root.setLevel(level)
    return wordllama
