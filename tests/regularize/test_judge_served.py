"""The judge critic on a real server: `transformers serve` with a small model on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.errors import InputError
from regularize.critics.judge import JudgeCritic
from regularize.data import examples
from tests.conftest import make_model, make_tokenizer

for name in ("openai", "fastapi", "uvicorn", "tenacity"):
    pytest.importorskip(name, reason=f"`transformers serve` and its client need {name}")

ANY: Any = None
ROWS = examples([{"prompt": f"do {i}", "completion": f"done {i}"} for i in range(3)])
VERDICT = "\nSCORE: 4"


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next token follows from the last one: after a line's end it says SCORE: 4."""
    folder = tmp_path_factory.mktemp("parrot")
    model: Any = make_model("llama", d_model=64)
    tokenizer = make_tokenizer()
    chain = [*tokenizer(VERDICT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (this, following) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[this, place] = 1.0
            model.lm_head.weight[following, place] = 20.0
    model.config.max_position_embeddings = 8192
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(parrot: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    command = [
        sys.executable, "-m", "transformers.cli.transformers", "serve", str(parrot),
        "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
    ]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_a_real_server_judges_and_the_same_model_here_agrees(
    url: str, parrot: Path, tmp_path: Path
) -> None:
    served = JudgeCritic(
        str(parrot), base_url=url, cache=tmp_path, backoff=0.1, max_tokens=16, concurrency=2
    ).assess(ROWS, ANY)
    assert served.s.tolist() == [0.75] * 3
    tally = served.tally or {}
    assert tally["calls"] == 3 and tally["prompt_tokens"] > 3 * 500
    assert tally["completion_tokens"] >= 3 * len("SCORE: 4")
    here = JudgeCritic(str(parrot), cache=tmp_path).assess(ROWS, ANY)
    np.testing.assert_allclose(here.s, served.s, atol=1e-6)


def test_a_real_server_cuts_off_what_is_too_long(url: str, parrot: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cut off before its verdict \(--critic.max-tokens\)"):
        JudgeCritic(str(parrot), base_url=url, cache=tmp_path, max_tokens=4, attempts=1).assess(
            ROWS, ANY
        )
