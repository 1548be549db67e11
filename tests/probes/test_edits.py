"""Edits of the residual stream: nothing is left of what is removed, through any library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes import models
from probes.batches import padded
from probes.blocks import position_ids
from probes.capture import pad_id
from probes.edits import Edit, check_edits, open_editing, unit
from probes.errors import InputError
from probes.greedy import greedy, stops_of
from probes.models import weights_fingerprint
from probes.rendering import Rendered, render
from tests.conftest import make_model
from tests.probes.test_backends import BACKENDS, gap, make_batch

D = 32
DIRECTION = torch.randn(D, generator=torch.Generator().manual_seed(3))
SHIFT = 4 * torch.randn(D, generator=torch.Generator().manual_seed(4))
LAYER = 1
EDITS: dict[str, tuple[Edit, ...]] = {
    "none": (),
    "ablate": (Edit.ablate(LAYER, DIRECTION),),
    "add": (Edit.add(2, SHIFT),),
    "both": (Edit.ablate(0, DIRECTION), Edit.add(LAYER, SHIFT, "all")),
}
PROMPTS = [[6, 7, 8], [20, 30, 40, 50, 60, 70, 80], [9]]
ROWS = [Rendered(tuple(ids), len(ids) - 1, False) for ids in PROMPTS]


def after_block(model: Any, layer: int, edits: tuple[Edit, ...]) -> torch.Tensor:
    """Oracle: what enters the block after, seen by a hook of the test's own."""
    seen = []
    handle = model.model.layers[layer + 1].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].clone())
    )
    ids, mask, _ = make_batch("left")
    open_editing(model, "transformers").predict(ids, mask, position_ids(mask), None, edits)
    handle.remove()
    return seen[0]


def naive(model: Any, ids: list[int], edits: tuple[Edit, ...], new: int) -> list[int]:
    """Oracle: one prompt at a time, no padding, no cache, the formula written out."""
    n_prompt = len(ids)
    made: list[int] = []

    def hook_of(edit: Edit) -> Any:
        def hook(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.clone()
            end = hidden.shape[1] if edit.tokens == "all" else n_prompt
            for t in range(end):
                a = hidden[0, t]
                if edit.removed is not None:
                    a = a - (a * edit.removed).sum() * edit.removed
                if edit.added is not None:
                    a = a + edit.added
                hidden[0, t] = a
            return hidden

        return hook

    handles = [model.model.layers[e.layer].register_forward_hook(hook_of(e)) for e in edits]
    with torch.no_grad():
        for _ in range(new):
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    for handle in handles:
        handle.remove()
    return made


def answers(model: Any, name: str, edits: tuple[Edit, ...], **options: Any) -> list[list[int]]:
    given = {"pad_id": 5, "stops": (), "new_tokens": 6} | options
    return greedy(open_editing(model, name), ROWS, edits, **given)


def test_nothing_of_a_removed_direction_is_left_at_any_token() -> None:
    model = make_model("llama")
    left = after_block(model, LAYER, EDITS["ablate"]) @ unit(DIRECTION)
    assert float(left.abs().max()) < 1e-5
    # Positive control: without the edit there is plenty, at the last token and at others.
    plenty = (after_block(model, LAYER, ()) @ unit(DIRECTION)).abs()
    assert float(plenty[:, -1].mean()) > 0.1 and float(plenty[:, 0].mean()) > 0.1


def test_only_the_direction_is_removed_and_just_the_shift_is_added() -> None:
    model = make_model("llama")
    plain = after_block(model, LAYER, ())
    u = unit(DIRECTION)
    ablated = after_block(model, LAYER, EDITS["ablate"])
    assert gap(ablated + (plain @ u)[..., None] * u, plain) < 1e-5
    added = after_block(model, LAYER, (Edit.add(LAYER, SHIFT),))
    assert gap(added - plain, SHIFT.expand_as(plain)) < 1e-5


@pytest.mark.parametrize("which", EDITS)
def test_greedy_answers_are_the_naive_ones(family: str, which: str) -> None:
    model = make_model(family)
    expected = [naive(model, ids, EDITS[which], 6) for ids in PROMPTS]
    assert answers(model, "transformers", EDITS[which]) == expected
    # One prompt a batch gives the same, and a stop cuts what comes after.
    assert answers(model, "transformers", EDITS[which], token_budget=1) == expected
    stop = expected[0][2]
    cut = answers(model, "transformers", EDITS[which], stops=(stop,))
    assert cut[0] == expected[0][: expected[0].index(stop)]


def test_where_it_is_added_makes_a_difference() -> None:
    model = make_model("llama")
    prompt, everywhere = (answers(model, "transformers", (Edit.add(0, SHIFT, tokens),))
                          for tokens in ("prompt", "all"))  # fmt: skip
    assert [one[0] for one in prompt] == [one[0] for one in everywhere]
    assert prompt != everywhere


@pytest.mark.parametrize("which", EDITS)
@pytest.mark.parametrize("name", BACKENDS[1:])
def test_backends_agree_on_logits_and_answers(name: str, which: str, family: str) -> None:
    model = make_model(family)
    ids, mask, _ = make_batch("left")
    more = torch.tensor([[7], [8], [9], [10]])
    longer = torch.cat([mask, torch.ones_like(more)], dim=1)
    logits = []
    for one in ("transformers", name):
        backend = open_editing(model, one)
        first = backend.predict(ids, mask, position_ids(mask), None, EDITS[which])
        second = backend.predict(
            more, longer, position_ids(longer)[:, -1:], first.past, EDITS[which]
        )
        logits.append(torch.stack([first.logits, second.logits]))
    assert gap(*logits) < 1e-4
    assert answers(model, name, EDITS[which]) == answers(model, "transformers", EDITS[which])
    if which != "none":  # an edit that did nothing would agree too
        backend = open_editing(model, name)
        plain = backend.predict(ids, mask, position_ids(mask), None, ())
        assert gap(plain.logits, logits[1][0]) > 0.05


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_added_is_the_model_itself(name: str) -> None:
    model = make_model("llama")
    ids, mask, _ = make_batch("left")
    with torch.no_grad():
        own = model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits[:, -1]
    backend = open_editing(model, name)
    for edits in ((), (Edit.add(LAYER, torch.zeros(D)),)):
        found = backend.predict(ids, mask, position_ids(mask), None, edits).logits
        assert gap(found, own) < 1e-4


@pytest.mark.parametrize("name", BACKENDS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = make_model("llama").train()
    before = weights_fingerprint(model)
    answers(model, name, EDITS["both"])
    assert weights_fingerprint(model) == before and model.training
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    assert answers(model, name, ()) == [naive(model, ids, (), 6) for ids in PROMPTS]


def test_bfloat16_is_computed_in_float32() -> None:
    hidden = 100 * torch.randn(1, 5, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    made = Edit.ablate(0, DIRECTION)(hidden)
    assert made.dtype == torch.bfloat16
    assert float((made.float() @ unit(DIRECTION)).abs().max()) < 100 * 2**-7


def test_three_libraries_answer_alike_with_the_shipped_weights() -> None:
    chat = models.load("miniature/qwen2", device_map="cpu")
    texts = ["Please open the vault.", "How do I tease the bear?", "Water the rose now."]
    rows = [render(chat.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    shift = 8 * torch.randn(96, generator=torch.Generator().manual_seed(0))
    edits = (Edit.ablate(2, shift), Edit.add(4, shift))
    options = {"pad_id": pad_id(chat.tokenizer), "stops": stops_of(chat), "new_tokens": 12}
    made = [greedy(open_editing(chat.model, name), rows, edits, **options) for name in BACKENDS]
    assert made[0] == made[1] == made[2]
    assert made[0] != greedy(open_editing(chat.model, "transformers"), rows, (), **options)


def test_padding_is_on_the_left() -> None:
    ids, mask = padded(ROWS, 5, "left")
    assert ids[2].tolist() == [5] * 6 + [9] and mask[2].tolist() == [0] * 6 + [1]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((Edit.ablate(3, DIRECTION),), "layer 3 does not exist: the model has 0..2"),
        ((Edit.add(1, torch.ones(8)),), r"shape \(8,\) for a width of 32"),
        ((Edit.add(1, SHIFT), Edit.add(1, SHIFT)), "one a layer"),
        ((Edit.add(1, SHIFT), Edit.add(0, SHIFT)), "in order"),
    ],
)
def test_edits_without_a_place_are_refused(edits: tuple[Edit, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_edits(edits, 3, D)


@pytest.mark.parametrize("length", [0.0, float("nan"), float("inf")])
def test_a_vector_without_direction_is_refused(length: float) -> None:
    with pytest.raises(InputError, match="has no direction"):
        Edit.ablate(0, torch.full((D,), length))


def test_a_model_elsewhere_is_not_changed() -> None:
    from probes.backends.nnsight import NnsightBackend

    backend = open_editing(make_model("llama"), "nnsight")
    assert isinstance(backend, NnsightBackend)
    backend.remote = True
    ids, mask, _ = make_batch("left")
    with pytest.raises(InputError, match="on this machine only"):
        backend.predict(ids, mask, position_ids(mask), None, ())
