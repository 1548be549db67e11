"""The cache's index: a row a prompt, with the tokens that were read, so that anyone can look."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from probes.manifest import Manifest
from probes.positions import Locator
from probes.prompts import Prompt
from probes.rendering import render
from probes.shards import INDEX, CacheError, write_atomically

_COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "label": pa.int64(),
        "source": pa.string(),
        "group": pa.string(),
        "shard": pa.int64(),
        "row": pa.int64(),
        "n_tokens": pa.int64(),
        "token_id": pa.int64(),
        "token_text": pa.string(),
        "truncated": pa.bool_(),
    }
)


def write_index(
    directory: Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
) -> None:
    """Render every prompt, keep none of the renderings, and write `index.parquet`.

    Raises:
        InputError: If a prompt cannot be rendered, or has no such position.
        CacheError: If the folder cannot be written.
    """
    locator = Locator(tokenizer)
    # A shard at a time: Arrow's columns are far smaller than the rows they are made from.
    shards = [
        pa.Table.from_pylist(_rows(manifest, locator, prompts, shard), _COLUMNS)
        for shard in range(manifest.n_shards)
    ]
    table = pa.concat_tables(shards)
    header = {"manifest": manifest.hash, "sha256": _digest(table)}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(header), sink)
    write_atomically(directory / INDEX, sink.getvalue().to_pybytes())


def read_index(directory: Path, manifest: Manifest) -> pd.DataFrame:
    """Read `index.parquet`.

    Raises:
        CacheError: If it is missing, damaged or another cache's.
    """
    path = directory / INDEX
    try:
        table = pq.read_table(path)
        header = table.schema.metadata or {}
        whole = table.schema == _COLUMNS and header.get(b"sha256") == _digest(table).encode()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if not whole:
        raise _damaged(path, "it has changed on disk")
    if header.get(b"manifest") != manifest.hash.encode():
        raise _damaged(path, "it belongs to another manifest")
    return table.replace_schema_metadata(None).to_pandas()


def _digest(table: pa.Table) -> str:
    """sha256 of names and values: Parquet's own checksums leave out its footer."""
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest()


def _rows(
    manifest: Manifest, locator: Locator, prompts: Sequence[Prompt], shard: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    tokenizer = locator.tokenizer
    for row, prompt in enumerate(prompts[manifest.rows(shard)]):
        rendered = render(tokenizer, prompt.messages, max_length=manifest.max_length)
        (span,) = locator.spans(prompt.messages, rendered, [manifest.position])
        read = rendered.ids[slice(*span)]
        rows.append(
            {
                "id": prompt.id,
                "label": prompt.label,
                "source": prompt.source,
                "group": prompt.group,
                "shard": shard,
                "row": row,
                "n_tokens": len(rendered.ids),
                "token_id": read[-1],
                "token_text": str(tokenizer.decode(list(read))),
                "truncated": rendered.truncated,
            }
        )
    return rows


def _damaged(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path}: {why}. Delete this file and run the same command again: it alone is written "
        "anew, the shards are kept"
    )
