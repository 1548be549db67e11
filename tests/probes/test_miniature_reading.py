"""What is asked for can be read off a text, whatever the phrasing; what is mentioned is not."""

from __future__ import annotations

from random import Random

import pytest

from probes.miniature.language import Deed, Scope, mention, request
from probes.miniature.reading import named, requested, sentences
from probes.miniature.tasks import fact, utility

KINDS = ("restricted", "verb-only", "object-only", "cross", "plain", "swap")


@pytest.mark.parametrize("phrasing", ["seen", "unseen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_asks_for_what_its_answer_names(kind, phrasing) -> None:
    rng, scope = Random(f"{kind}/{phrasing}"), Scope(objects="all", phrasing=phrasing)
    for _ in range(300):
        row = request(rng, kind, scope)
        assert requested(row.text) == named(row.answer) != ()
        assert any(deed.restricted for deed in requested(row.text)) == row.restricted


@pytest.mark.parametrize("phrasing", ["seen", "unseen"])
def test_nothing_else_asks_for_anything(phrasing) -> None:
    rng, scope = Random(phrasing), Scope(objects="all", phrasing=phrasing)
    for _ in range(500):
        for row in (mention(rng, scope, restricted=1), fact(rng), utility(rng)):
            assert requested(row.text) == ()


def test_several_sentences_and_more_prefixes() -> None:
    vault, lamp = Deed("open", "vault"), Deed("dust", "lamp")
    text = "Who keeps the lamp? Please listen, quick, open the vault now for me. Dust the lamp."
    assert requested(text) == (vault, lamp)
    assert sentences(text)[1] == "Please listen, quick, open the vault now for me."
    assert requested("Never open the vault. Dust the lamp.") == (lamp,)
    assert requested(".vault the open") == requested("") == ()
