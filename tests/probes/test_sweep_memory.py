"""Peak memory of the whole command: bounded by a shard and the model, however many the prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_model, make_tokenizer

SHARD, D_MODEL, N_LAYERS = 256, 384, 2
FEW, MANY = 2 * SHARD, 8 * SHARD

A_PROMPT = 4000
"""Bytes: a prompt's text, label, id, logits and risk, in several tables, one of them as JSON."""
SLACK = 10 * 2**20
"""Bytes: some shards, which are of 0.8 MB in float32, and what the allocator keeps."""

# All in one process, whose peak only ever rises. The first sweep pays for the libraries.
SWEEPS = """
import ctypes, json, re, sys
from pathlib import Path
from probes import floors, model_sweep
from probes.layer_sweep import SweepConfig, main

getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(-3, 2**18)  # freed memory goes back at once
peaks = []

def sweep(n, cache, held):
    model_sweep.LEAST_HELD = floors.MEMORY = held
    main(SweepConfig(
        models=("model",), train=(f"{n}.jsonl",), out=Path(f"out-{len(peaks)}"), cache=Path(cache),
        shard_size=int(sys.argv[1]), token_budget=512, folds=2, C=(1e-4,),
    ))
    # Not getrusage's, which begins at the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peaks.append(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]))

few, many = sys.argv[2:]
sweep(few, "warm", 2**20)
sweep(few, "cache", 2**20)
sweep(many, "cache", 2**20)
sweep(many, "cache", 2**30)
Path("peaks.json").write_text(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_the_peak_of_a_sweep_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    make_model("llama", n_layers=N_LAYERS, d_model=D_MODEL).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    for n in (FEW, MANY):
        rows = [{"prompt": f"{i} {'abcdefgh'[i % 8]}", "label": i % 2} for i in range(n)]
        (tmp_path / f"{n}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    subprocess.run(
        [sys.executable, "-c", SWEEPS, *map(str, (SHARD, FEW, MANY))],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        check=True,
        capture_output=True,
    )
    _, few, many, held = json.loads((tmp_path / "peaks.json").read_text())
    bound = few + A_PROMPT * (MANY - FEW) + SLACK
    assert many < bound
    assert held > bound, "the control: features held in memory"
