"""A frozen probe is the probe that was fitted, on the model that it was fitted on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.metrics import Interval, threshold_in_gap
from probes.models import ChatModel
from probes.probe import CrossValidated, Folds, LinearReadout, cross_validate, fit
from probes.prompts import Prompt, PromptSet
from tests.conftest import CHAT_TEMPLATE, make_model, make_tokenizer

TEXTS = [f"{'open' if i % 2 else 'clean'} the box {i * 7919 % 101} times" for i in range(60)]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel("tiny/llama", None, make_model("llama"), make_tokenizer())


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    rows = [Prompt.of(text, label=i % 2, source="test") for i, text in enumerate(TEXTS)]
    return PromptSet("boxes", tuple(rows))


@pytest.fixture(scope="module")
def cache(chat, prompts, tmp_path_factory) -> ActivationCache:
    return ActivationCache.build(
        tmp_path_factory.mktemp("cache") / "c",
        chat,
        prompts,
        backend=open_backend(chat.model),
        shard_size=17,
    )


def freeze(cache, prompts, readout="layer", layers=(1,), Cs=(0.1,), fpr=0.1) -> FrozenProbe:
    folds = Folds.of(prompts.labels, prompts.groups)
    options = {"readout": readout, "layers": layers, "Cs": Cs}
    return FrozenProbe.of(
        fit(cache, prompts.labels, folds, **options),
        cache.manifest,
        prompts,
        cross_validate(cache, prompts.labels, folds, **options),
        auroc=Interval(0.9, 0.8, 0.95),
        fpr=fpr,
    )


@pytest.fixture(scope="module")
def probe(cache, prompts) -> FrozenProbe:
    return freeze(cache, prompts)


@pytest.fixture
def folder(probe, tmp_path):
    probe.save_pretrained(tmp_path / "probe")
    return tmp_path / "probe"


def test_the_decision_function_is_sklearns(cache, prompts, probe):
    x = cache.layer(1).double().numpy()
    theirs = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000)
    ).fit(x, prompts.labels)
    ours = probe(cache.layer(1)[:, None]).numpy()
    np.testing.assert_allclose(ours, theirs.decision_function(x), atol=1e-5, rtol=0)
    assert np.ptp(ours) > 1


def test_large_offsets_do_not_cost_precision(cache, prompts):
    """Residual streams have features far from 0: rounding acts on the deviation, not the mean."""
    generator = torch.Generator().manual_seed(0)
    x = 300 + torch.randn(80, 16, generator=generator)
    labels = (x[:, 0] > 300).long().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x.double().numpy(), labels)
    from probes.features import Features, Stacked

    features = Features.of(Stacked(x[:, None]), [0], np.ones(80, dtype=bool), "concat")
    weight, bias = features.fold(torch.from_numpy(model[1].coef_[0]), float(model[1].intercept_[0]))
    readout = LinearReadout("layer", (0,), weight, bias, 1.0)
    wanted = model.decision_function(x.double().numpy())
    np.testing.assert_allclose(readout.logits(Stacked(x[:, None])), wanted, atol=1e-5)
    naive = (x.double() @ weight[0].double()).numpy() + float(
        model[1].intercept_[0] - (model[1].coef_[0] / model[0].scale_) @ model[0].mean_
    )
    assert np.abs(naive - wanted).max() > np.abs(readout.logits(Stacked(x[:, None])) - wanted).max()


def test_it_learns_nothing_more(probe):
    assert not list(probe.parameters())
    assert {name: b.dtype for name, b in probe.named_buffers()} == {
        "weight": torch.float32,
        "bias": torch.float32,
    }
    assert not probe(torch.randn(3, 1, 32)).requires_grad


def test_round_trip(probe, folder, cache):
    again = FrozenProbe.from_pretrained(folder)
    assert again.config == probe.config
    torch.testing.assert_close(again.risk_of(cache), probe.risk_of(cache), atol=0, rtol=0)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert "AUROC on folds of it that it was not trained on: 0.900" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    assert config["weights"] == cache.manifest.weights
    assert config["layers"] == [1]


def test_loading_is_silent(folder, capsys):
    FrozenProbe.from_pretrained(str(folder))
    assert capsys.readouterr().out == ""


def test_saving_over_an_older_probe_replaces_its_readme(folder, cache, prompts):
    freeze(cache, prompts, Cs=(0.5,)).save_pretrained(folder)
    assert "C = 0.5" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("readout", "layers"), [("layer", (2,)), ("pooled-mean", (0, 1, 2)), ("pooled-concat", (2, 0))]
)
def test_risk_is_the_cached_risk(chat, cache, prompts, readout, layers):
    probe = freeze(cache, prompts, readout, layers)
    live = probe.risk(chat.model, chat.tokenizer, TEXTS[:9])
    torch.testing.assert_close(live, probe.risk_of(cache)[:9], atol=1e-5, rtol=0)
    folds = Folds.of(prompts.labels, prompts.groups)
    again = fit(cache, prompts.labels, folds, readout=readout, layers=layers, Cs=(0.1,))
    np.testing.assert_allclose(probe.risk_of(cache), expit(again.logits(cache)), atol=1e-5)
    assert live.dtype == torch.float32
    assert ((live > 0) & (live < 1)).all()


def test_risk_takes_whole_chats_and_an_nnsight_model(chat, probe):
    from nnsight import LanguageModel

    messages = [{"role": "user", "content": TEXTS[0]}]
    wanted = probe.risk(chat.model, chat.tokenizer, [TEXTS[0]])
    torch.testing.assert_close(probe.risk(chat.model, chat.tokenizer, [messages]), wanted)
    wrapped = LanguageModel(make_model("llama"), tokenizer=make_tokenizer())
    torch.testing.assert_close(probe.risk(wrapped, chat.tokenizer, [messages]), wanted)


def test_another_model_is_refused(chat, probe):
    other = make_model("llama", seed=1)
    with pytest.raises(InputError, match=r"fitted on tiny/llama .* weights \w{16} instead of"):
        probe.risk(other, chat.tokenizer, TEXTS[:2])
    assert probe.risk(other, chat.tokenizer, TEXTS[:2], allow_mismatch=True).shape == (2,)
    tuned = make_model("llama")
    with torch.no_grad():
        tuned.get_decoder().layers[0].mlp.up_proj.weight[0, 0] += 0.01
    with pytest.raises(InputError, match="weights"):
        probe.risk(tuned, chat.tokenizer, TEXTS[:2])


def test_another_width_is_refused_even_then(chat, probe):
    other = make_model("llama", d_model=16)
    with pytest.raises(InputError, match="width 32, but this model's are of width 16"):
        probe.risk(other, chat.tokenizer, TEXTS[:2], allow_mismatch=True)


def test_another_template_is_refused(chat, probe):
    other = make_tokenizer(CHAT_TEMPLATE.replace("<|end|>", ""))
    with pytest.raises(InputError, match="chat template"):
        probe.risk(chat.model, other, TEXTS[:2])
    assert probe.risk(chat.model, other, TEXTS[:2], allow_mismatch=True).shape == (2,)


def test_another_hook_point_is_refused(chat, prompts, probe, tmp_path):
    other = ActivationCache.build(
        tmp_path / "c", chat, prompts, backend=open_backend(chat.model), hook_point="mlp_out"
    )
    with pytest.raises(InputError, match="hook point mlp_out instead of resid_post"):
        probe.risk_of(other)
    assert probe.risk_of(other, allow_mismatch=True).shape == (60,)


def test_a_bridge_is_told_what_to_do(chat, probe):
    bridge = open_backend(make_model("llama"), "transformer-lens").bridge
    with pytest.raises(InputError, match="TransformerBridge renames its weights"):
        probe.risk(bridge, chat.tokenizer, TEXTS[:2])
    torch.testing.assert_close(
        probe.risk(bridge, chat.tokenizer, TEXTS[:2], allow_mismatch=True),
        probe.risk(chat.model, chat.tokenizer, TEXTS[:2]),
        atol=1e-4,
        rtol=0,
    )


def test_the_threshold_is_set_on_unseen_rows(cache, prompts):
    folds = Folds.of(prompts.labels, prompts.groups)
    probe = freeze(cache, prompts, fpr=0.2)
    found = cross_validate(
        cache, prompts.labels, folds, readout="layer", layers=(1,), Cs=(0.1,)
    ).logits
    flagged = found[prompts.labels == 0] > probe.config.threshold
    assert probe.config.realised_fpr == np.mean(flagged)
    assert np.mean(flagged) <= 0.2
    assert probe.config.threshold == threshold_in_gap(prompts.labels, found, 0.2)


def test_too_few_negatives_leave_no_threshold(cache, prompts, tmp_path):
    with pytest.warns(RuntimeWarning, match="from 30 harmless scores: it takes 100"):
        probe = freeze(cache, prompts, fpr=0.01)
    assert (probe.config.threshold, probe.config.realised_fpr) == (None, None)
    probe.save_pretrained(tmp_path)
    assert FrozenProbe.from_pretrained(tmp_path).config == probe.config
    assert "too few harmless rows" in (tmp_path / "README.md").read_text()


def test_freezing_needs_no_activations(prompts, cache):
    """`of` takes the manifest and plain arrays."""
    readout = LinearReadout("layer", (0,), torch.ones(1, 32), -1.0, None)
    logits = np.linspace(-1, 1, 60)
    probe = FrozenProbe.of(
        readout,
        dataclasses.replace(cache.manifest, revision="main"),
        prompts,
        CrossValidated(logits, np.zeros(60, dtype=np.int64), np.array([np.nan])),
        fpr=0.5,
    )
    assert probe.config.revision == "main"
    assert probe(torch.ones(2, 5, 1, 32)).tolist() == [[31.0] * 5] * 2


def broken(folder, what):
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    match what:
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:50])
        case "not JSON":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case "field missing":
            del values["template"]
            config.write_text(json.dumps(values))
        case "other shape":
            save_file({**load_file(weights), "weight": torch.zeros(1, 7)}, weights)
        case "no bias":
            save_file({"weight": load_file(weights)["weight"]}, weights)
        case "later format":
            config.write_text(json.dumps({**values, "format": values["format"] + 1}))


@pytest.mark.parametrize(
    "what",
    [
        "no config",
        "no weights",
        "cut weights",
        "not JSON",
        "a list",
        "field missing",
        "other shape",
        "no bias",
        "later format",
    ],
)
def test_a_damaged_probe_is_refused(folder, what):
    broken(folder, what)
    with pytest.raises(InputError, match="probe"):
        FrozenProbe.from_pretrained(folder)


def test_no_probe_there(tmp_path):
    for source in (tmp_path / "nothing", tmp_path, "./no/such/folder", "no-such-probe"):
        with pytest.raises(InputError, match="probe"):
            FrozenProbe.from_pretrained(source)
