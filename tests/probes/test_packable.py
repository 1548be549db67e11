"""What cannot be packed is found out, and read as ever."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from probes import packable as module
from probes.attention import Plan, attending, examine
from probes.backends import PackingBackend, open_backend
from probes.backends.transformers import TransformersBackend
from probes.capture import capture_rows
from probes.hooks import Site, sites
from probes.packable import NOT_PACKABLE, Packable, packable
from probes.packing import pack
from probes.tail import tail
from tests.conftest import make_model
from tests.probes.test_backends import BACKENDS
from tests.probes.test_families import GEMMA
from tests.probes.test_packed_capture import alone, counting, row, some

SHAPE = {**GEMMA, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip


def make(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    match kind:
        case "capped logits":
            model = Gemma2ForCausalLM(Gemma2Config(head_dim=8, **SHAPE))
        case "sinks":
            model = GptOssForCausalLM(
                GptOssConfig(head_dim=8, num_local_experts=4, num_experts_per_tok=2, **SHAPE)
            )
        case "biased by distance":
            model = BloomForCausalLM(
                BloomConfig(vocab_size=288, hidden_size=32, n_layer=3, n_head=4)
            )
        case "convolution":
            types = ["conv", "full_attention", "conv"]
            model = Lfm2ForCausalLM(Lfm2Config(layer_types=types, **SHAPE))
        case "window":
            model = MistralForCausalLM(MistralConfig(sliding_window=20, **SHAPE))
        case "scaled residual":
            model = GraniteForCausalLM(GraniteConfig(residual_multiplier=0.3, **SHAPE))
        case _:
            # Beyond 64 tokens all rotations change, of short prompts in the same batch too.
            model = Phi3ForCausalLM(
                Phi3Config(
                    max_position_embeddings=400, original_max_position_embeddings=64,
                    rope_parameters=LONGROPE, **SHAPE,
                )
            )  # fmt: skip
    return model.eval()


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try to pack however few tokens there are."""
    monkeypatch.setattr("probes.capture.WORTH_PACKING", 0)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("capped logits", 0),
        ("sinks", 0),
        ("biased by distance", 0),
        ("convolution", 0),
        ("window", 20),
        ("long rotations", 64),
        ("scaled residual", 128),
    ],
)
def test_what_can_be_packed_is_and_the_rest_is_read_as_ever(kind: str, limit: int) -> None:
    model = make(kind)
    before = str(model.config)
    backend = TransformersBackend(model)
    rows = [*some(), row([*range(100)])]
    points = sites("resid_post", [0, 2])
    done: list[int] = []
    with counting() as sizes:
        found = capture_rows(backend, rows, points, pad_id=0, token_budget=60, on_batch=done.append)
    assert backend.packable(100) == limit and bool(sizes) == bool(limit)
    assert sum(done) == len(rows)
    torch.testing.assert_close(found, alone(backend, rows, points), rtol=0, atol=1e-4)
    assert str(model.config) == before


def test_a_limit_is_no_more_than_what_was_examined() -> None:
    """Positive control: beyond its window a prompt does come out otherwise."""
    model = make("window")
    backend = TransformersBackend(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersBackend, "packable", lambda self, longest: longest)
        wrong = capture_rows(backend, [row(range(60))], [Site("resid_post", 2)], pad_id=0)
    right = alone(backend, [row(range(60))], [Site("resid_post", 2)])
    assert float((wrong - right).abs().max()) > 1e-2


def test_the_rest_of_a_block_is_its_own_or_not_run() -> None:
    """A block that scales what it adds has the usual names."""
    block = make("scaled residual").get_decoder().layers[0]
    assert tail(block) is not None
    assert packable(make("scaled residual").get_decoder(), 100) == Packable(128, frozenset())
    llama = make_model("llama").model
    assert packable(llama, 100).tails == {0, 1, 2}
    block, (pre, heads) = llama.layers[1], torch.randn(2, 1, 5, 32).unbind()
    rest = tail(block)
    assert rest is not None
    points = rest(pre, heads)
    mid = pre + block.self_attn.o_proj(heads)
    wanted = mid + block.mlp(block.post_attention_layernorm(mid))
    torch.testing.assert_close(points["resid_post"], wanted)
    del block.mlp
    assert tail(block) is None


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = module._try
    monkeypatch.setattr(module, "_try", lambda d, n: tried.append(n) or real(d, n))
    model = make_model("qwen2")
    for longest in (5, 60, 64, 100, 3, 500, 511, 512, 600):
        assert open_backend(model).packable(longest) >= longest  # type: ignore[attr-defined]
    assert tried == [64, 128, 512, 600]
    model.set_attn_implementation("eager")
    open_backend(model).packable(60)  # type: ignore[attr-defined]
    assert tried == [64, 128, 512, 600, 64]


def test_what_fails_is_not_packed_and_out_of_memory_is_no_failure() -> None:
    def fail(error: type[Exception]) -> Packable:
        model = make_model("llama").model

        def hook(*_: object) -> None:
            raise error("no")

        model.layers[1].register_forward_pre_hook(hook)
        return packable(model, 60)

    assert fail(ValueError) == NOT_PACKABLE
    with pytest.raises(torch.OutOfMemoryError):
        fail(torch.OutOfMemoryError)


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_other_backends_pad(name: str) -> None:
    model = make_model("llama")
    backend = open_backend(model, name)
    assert not isinstance(backend, PackingBackend)
    points = sites("resid_post", [0, 2])
    found = capture_rows(backend, some(), points, pad_id=0)
    torch.testing.assert_close(found, alone(TransformersBackend(model), some(), points),
                               rtol=0, atol=1e-4)  # fmt: skip


def test_masks_are_examined_as_far_as_asked() -> None:
    """Oracle: the window itself, for masks of both kinds of layer."""

    def plain(model: nn.Module, longest: int) -> int:
        packed = pack([row(range(3))])
        plan = Plan(packed, loop=True, longest=longest, plain=longest)
        with attending(model, plan), torch.no_grad():
            model(input_ids=packed.ids[None], attention_mask=torch.ones(1, 3), use_cache=False)
        return plan.plain

    def bits(model: nn.Module, n: int) -> bool:
        """Whether the last token sees the first, in transformers' own run."""
        ids = torch.arange(n)[None]
        other = torch.cat([torch.full((1, 1), 200), ids[:, 1:]], dim=1)
        with torch.no_grad():
            one, two = (model(it).last_hidden_state[0, -1] for it in (ids, other))
        return not torch.equal(one, two)

    decoder = make("window").model
    decoder.layers = decoder.layers[:1]
    decoder.config.num_hidden_layers = 1
    assert plain(decoder, 100) == 20 and plain(decoder, 15) == 15
    assert bits(decoder, 20) and not bits(decoder, 21)
    assert plain(make_model("llama").model, 3000) == 3000


def test_a_token_of_its_own_mask_is_refused() -> None:
    def custom(*_: Tensor) -> Tensor:
        return torch.tensor(True)

    plan = Plan(pack([row([1])]), loop=True, longest=50, plain=50)
    with attending(make_model("llama").model, plan):
        examine(mask_function=custom, use_vmap=True)
    assert plan.plain == 0
