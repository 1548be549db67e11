"""Safety token regularization: the logits of a refusal's own tokens stay where the reference's are.

Bach and Tran 2026, arXiv 2604.17210 ("Guardrails in Logit Space"). S are salient tokens of the
aligned model's refusals; in the same context, the logits z_theta of the policy and z_ref of the
frozen reference are compared at them, beside the NLL of what is learnt:

    L = mean_t [NLL_t + lambda mean_{v in S} (z_theta[t, v] - z_ref[t, v])^2],    t in answers

There is no released code, and the sources at hand (the abstract; accounts of section 3) leave much
open, so that this is one reading of the paper, not a reproduction. Open is, and chosen here:

    S           `tokens`, or else those that begin many of the model's own answers to harmful
                requests and few to harmless ones (`k`, `frequent`, `rare`, `asked`)
    lambda      .01, as in a third party's implementation; no number of the authors' is known. It
                weighs squared logits against nats, so that each model needs its own:
                miniature/llama does not feel .01 or .1; at 1 it refuses, and hardly learns
    norm        squared, as there; or absolute
    t           all answer tokens, or the first `positions`; the mean is over all of them anyway
    what of v   its logit; or its log-probability z - logsumexp(z). Logits that stay do not keep
                their tokens' probability where all others rise: that takes the normaliser too.

That implementation holds the logits to their mean over templates; the paper, by those accounts, to
the reference's in the same context, and so do we.

It costs |S| numbers of the reference a token, computed once, with answers of some tokens to a few
hundred requests; and at a step |S| rows of the head. The log-probability needs no second pass over
the head: log q_v = z_v - z_y - NLL, so that its normaliser only scales the NLL's own gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from probes.errors import InputError
from regularize.defences import At, Defence, Given, Need, share

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from probes.models import ChatModel
    from probes.prompts import Message
    from regularize.losses import Head, Terms


class Salient(NamedTuple):
    """A token of refusals."""

    token: int
    refused: float
    """Share of the answers to harmful requests that have it among their first tokens."""
    done: float
    """Share of the answers to harmless ones."""


@dataclass(frozen=True)
class SafetyTokens(Defence):
    """L = NLL + lambda mean over S of (z_theta - z_ref)^2."""

    lam: float = 0.01
    """lambda, the weight of the penalty beside the NLL; 0 is plain fine-tuning."""
    tokens: tuple[int | str, ...] = ()
    """S: numbers of tokens, and texts, each of which stands for all of its tokens ("I cannot",
    " sorry"). Default: found in the model's own answers to the requests of --safe."""
    held: Literal["logit", "log-probability"] = "logit"
    """What of the tokens is held to the reference's."""
    norm: Literal["squared", "absolute"] = "squared"
    """Of the difference to it."""
    positions: int | None = None
    """Hold only an answer's first tokens, so many. Default: all."""
    k: int = 8
    """First tokens of an answer that are searched."""
    frequent: float = 0.2
    """A token is salient if at least this share of answers to harmful requests has it there..."""
    rare: float = 0.1
    """... and at most this share of those to harmless ones."""
    asked: int = 200
    """At most so many requests of either label are asked, drawn by the seed."""

    needs_risk = False
    has_constants = True

    @property
    def needs(self) -> tuple[Need, ...]:  # type: ignore[override]
        """Safe data, where the tokens are to be found."""
        return () if self.tokens else ("safe",)

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if not 0 <= self.lam < inf:
            raise InputError(f"--defence.lam {self.lam}: must be a number, and not negative")
        for name in ("frequent", "rare"):
            share(name, getattr(self, name))
        if self.rare >= self.frequent:
            raise InputError(
                f"--defence.rare {self.rare} must be less than --defence.frequent {self.frequent}: "
                "salient are tokens that refusals have more often than other answers"
            )
        for name in ("positions", "k", "asked"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--defence.{name} {value}: must be at least 1")

    def before(self, given: Given) -> Self:
        """Find S, if it is not given, and show it.

        Raises:
            InputError: A token is none of the model's, the safe data lack a label, or no token is
                salient.
        """
        chat = given.chat
        if self.tokens:
            ids = self._named(chat)
            _show(f"{len(ids)} safety tokens:", [_text(one, chat) for one in ids])
        else:
            found = self.salient(given)
            ids = tuple(one.token for one in found)
            _show(
                f"{len(ids)} safety tokens, with their share among the first {self.k} tokens of "
                "the model's own answers to harmful / harmless requests:",
                [f"{_text(one.token, chat)} {one.refused:.2f} / {one.done:.2f}" for one in found],
            )
        return replace(self, tokens=ids)

    def salient(self, given: Given) -> list[Salient]:
        """The tokens that the model's own refusals begin with, and its other answers do not.

        Special tokens are none: that a refusal is short does not make it one.

        Raises:
            InputError: The safe data lack a label, or there are no such tokens.
        """
        shares = []
        for label, kind in ((1, "harmful"), (0, "harmless")):
            prompts = [one.prompt for one in given.safe if one.label == label]
            if not prompts:
                raise InputError(
                    f"--safe has no {kind} requests (label {label}): the tokens of refusals are "
                    "found by comparing the answers to harmful and harmless ones; or name them "
                    "with --defence.tokens"
                )
            if len(prompts) > self.asked:
                prompts = Random(f"safety-tokens/{given.seed}").sample(prompts, self.asked)
            shares.append(_shares(given.chat, prompts, self.k))
        refused, done = shares
        known = [Salient(token, by, done.get(token, 0.0)) for token, by in refused.items()]
        known.sort(key=lambda one: (one.done - one.refused, one.token))
        found = [one for one in known if one.refused >= self.frequent and one.done <= self.rare]
        if not found:
            nearest = ", ".join(
                f"{_text(one.token, given.chat)} {one.refused:.2f} / {one.done:.2f}"
                for one in known[:5]
            )
            raise InputError(
                f"no token is in {self.frequent:g} of the model's answers to harmful requests and "
                f"in at most {self.rare:g} of those to harmless ones; nearest are: "
                f"{nearest or 'none'}. Does it refuse at all? Change --defence.frequent or "
                "--defence.rare, or name tokens with --defence.tokens"
            )
        return found

    def of_reference(
        self,
        hidden: Float[Tensor, "token d_model"],
        head: Head,
        target: Int[Tensor, "token"],
    ) -> Float[Tensor, "token salient"]:
        """z_ref of S, or log pi_ref (nats)."""
        from regularize.losses import regularized

        z = self._logits(hidden, head, target)
        if self.held == "logit":
            return z
        one = hidden.new_ones(len(hidden))
        return z - regularized(hidden, head, target, one, 0 * one).nll[:, None]

    def loss(self, at: At) -> Terms:
        """sum over tokens of alpha (NLL + penalty) + beta KL: an anchor is pure KL, as elsewhere.

        In evaluation, where there is no reference, without the penalty.
        """
        from regularize.losses import regularized

        if at.constants is None:
            return super().loss(at)
        here = at.place < (inf if self.positions is None else self.positions)
        moved = self._logits(at.hidden, at.head, at.target) - at.constants

        def rest(nll: Tensor, tokens: slice) -> Tensor:
            # The penalty's gradient through the NLL in log q_v = z_v - z_y - NLL; that through the
            # logits is left to autograd, to which the NLL is a constant.
            return 1 - here[tokens] * self._slope(moved.detach()[tokens] - nll[:, None])

        normalised = self.held == "log-probability"
        terms = regularized(
            at.hidden,
            at.head,
            at.target,
            at.alpha,
            at.beta,
            at.reference,
            factor=rest if normalised else None,
        )
        weight = at.alpha * here
        if not normalised:
            return terms._replace(loss=terms.loss + (weight * self._penalty(moved)).sum())
        moved = moved - terms.nll[:, None]
        # The factor has scaled the NLL's value as well.
        whole = terms.loss + (weight * self._slope(moved.detach()) * terms.nll).sum()
        return terms._replace(loss=whole + (weight * self._penalty(moved)).sum())

    def _penalty(self, moved: Float[Tensor, "token salient"]) -> Float[Tensor, "token"]:
        """Lambda times the mean over S."""
        size = moved.square() if self.norm == "squared" else moved.abs()
        return self.lam * size.mean(1)

    def _slope(self, moved: Float[Tensor, "token salient"]) -> Float[Tensor, "token"]:
        """How the penalty grows when all of S moves alike."""
        slope = 2 * moved if self.norm == "squared" else moved.sign()
        return self.lam * slope.mean(1)

    def _logits(
        self,
        hidden: Float[Tensor, "token d_model"],
        head: Head,
        target: Int[Tensor, "token"],
    ) -> Float[Tensor, "token salient"]:
        """z_v of S, or where its log-probability is held z_v - z_y."""
        import torch
        from torch.nn.functional import embedding, linear

        wide = torch.promote_types(hidden.dtype, torch.float32)
        ids = torch.tensor(self.tokens, dtype=torch.long, device=hidden.device)
        # Rounded as for the NLL, of which differences are taken.
        hidden = hidden.to(head.weight.dtype).to(wide)
        bias = None if head.bias is None else head.bias[ids].to(wide)
        z = linear(hidden, head.weight[ids].to(wide), bias)
        if self.held == "logit":
            return z
        z_y = (hidden * embedding(target, head.weight)).sum(-1)
        return z - (z_y if head.bias is None else z_y + head.bias[target])[:, None]

    def _named(self, chat: ChatModel) -> tuple[int, ...]:
        """The tokens that were given, as numbers, each once.

        Raises:
            InputError: One of them is none of the model's.
        """
        from regularize.model import head_of

        n, found = len(head_of(chat.model).weight), list[int]()
        for one in self.tokens:
            if isinstance(one, str):
                ids = list(chat.tokenizer(one, add_special_tokens=False)["input_ids"])
            else:
                ids = [one] if 0 <= one < n else []
            if not ids:
                raise InputError(
                    f"--defence.tokens {one!r}: no token of {chat.name}, which has 0 to {n - 1}"
                )
            found += ids
        return tuple(dict.fromkeys(found))


def _shares(chat: ChatModel, prompts: Sequence[tuple[Message, ...]], k: int) -> dict[int, float]:
    """Of the model's own answers, the share that has each token among its first k."""
    from regularize.anchors import answered
    from regularize.data import IGNORE, encode
    from regularize.model import adapter_off

    with adapter_off(chat.model):
        # Beyond k, lest the cut makes other tokens of the last word.
        own = answered(chat, prompts, max_new_tokens=2 * k)
    added = chat.tokenizer.added_tokens_decoder.items()
    special = {*chat.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    counts: Counter[int] = Counter()
    for one in own:
        ids = [label for label in encode(one, chat.tokenizer).labels if label != IGNORE]
        counts.update(set(ids[:k]) - special)
    return {token: n / len(own) for token, n in counts.items()}


def _text(token: int, chat: ChatModel) -> str:
    return repr(chat.tokenizer.decode([token]))


def _show(heading: str, items: Sequence[str]) -> None:
    """To the person who trains, by one of several processes, beside what a program may print."""
    from rich.console import Console
    from torch import distributed

    several = distributed.is_available() and distributed.is_initialized()
    quiet = several and distributed.get_rank() > 0
    console = Console(stderr=True, highlight=False, quiet=quiet)
    console.print(f"{heading} {', '.join(items)}", markup=False, soft_wrap=True)
