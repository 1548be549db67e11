"""A byte-level BPE tokenizer for each family, trained on the request language."""

from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from probes.miniature import Family
from probes.miniature.families import ARCHITECTURES, CONTEXT
from probes.miniature.language import REFUSALS
from probes.miniature.splits import training_rows

VOCAB_SIZE = 1024
SAMPLE = 20_000
"""Rows of the language that the merges are learnt from."""


def train_tokenizer(family: Family, *, seed: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's special tokens and chat template.

    Normaliser and pre-tokeniser are Qwen2's for every family: `AutoTokenizer` puts them in for a
    model of type ``qwen2``, whatever the saved file says, and so changes nothing.
    """
    arch = ARCHITECTURES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rows = islice(training_rows(Random(seed), objects="all"), SAMPLE)
    texts = [text for row in rows for text in (row.text, row.answer)]
    texts += [*REFUSALS, "system user assistant", "system", "user", "assistant", "\n\n"] * 500
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(arch.special_tokens),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=arch.bos,
        eos_token=arch.eos,
        pad_token=arch.special_tokens[0],
        additional_special_tokens=list(arch.special_tokens),
        model_max_length=CONTEXT,
        padding_side="left",
    )
    fast.chat_template = arch.template
    return fast
