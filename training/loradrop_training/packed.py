"""Examples side by side in one row, after the beginning that they share: no padding, and nothing computed twice.

The chat template's header, the system message and the instruction begin all examples of a data set alike, and are more than
half of a labelled sentence's tokens. Under causal attention they also come out alike: one row computes them once, and every
example of the row sees them, itself, and no other. Losses and gradients are those of a padded batch; only dropout differs, which
falls on the shared tokens once for the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch.nn import functional as F

from .examples import IGNORED, TokenizedExample, answer_losses, head, padded

# Every column of a row attends to every other; in longer rows that would cost what the shared beginning saves.
ROW_TOKENS = 1024
# Less is not worth a mask: without one, attention has faster kernels, and keeps no copy of keys and values for each query's head.
MIN_SAVED = 0.2
_PADDING, _SHARED = -1, 0


@dataclass(frozen=True, slots=True)
class Rows:
    """All (rows, longest)."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor  # as if each example stood alone
    owners: torch.Tensor  # the example of a column, from 1 in each row; _SHARED, _PADDING
    labels: torch.Tensor  # the token that follows a column; IGNORED where it is not trained on


def losses(model: Any, examples: Sequence[TokenizedExample], pad_id: int, device: torch.device) -> torch.Tensor:
    """Cross-entropy of each answer token, in nats: (answer tokens,); in rows, or in a padded batch where rows save little."""
    layout = Layout.of(examples)
    if takes_rows(model.config) and layout.saves:
        return row_losses(model, packed(layout, pad_id), device)
    return answer_losses(model, padded(examples, pad_id).to(device))


def takes_rows(config: Any) -> bool:
    """Whether every layer takes our mask: flash-attention does not; a sliding window or a state goes by columns."""
    return (
        config._attn_implementation == "sdpa"
        and getattr(config, "sliding_window", None) is None
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Which examples stand in which row, all of them after `shared` tokens; `columns` is the longest row's length."""

    shared: int
    rows: tuple[tuple[TokenizedExample, ...], ...]
    columns: int
    saves: bool  # clearly fewer columns than a padded batch

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample]) -> "Layout":
        shared = shared_tokens(examples)
        rows = _in_rows(examples, shared)
        columns = shared + max(sum(_own_tokens(one, shared) for one in row) for row in rows)
        padded_columns = len(examples) * (max(len(one.ids) for one in examples) - 1)
        return cls(shared, tuple(map(tuple, rows)), columns, columns * len(rows) <= (1 - MIN_SAVED) * padded_columns)


def shared_tokens(examples: Sequence[TokenizedExample]) -> int:
    """That all prompts begin with. A prompt's last token is left out: what it predicts is each answer's own."""
    first, last = (
        min(one.ids for one in examples),
        max(one.ids for one in examples),
    )  # in order: those between agree, too
    beginning = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return max(0, min(beginning, *(one.prompt_tokens - 1 for one in examples)))


def _in_rows(examples: Sequence[TokenizedExample], shared: int) -> list[list[TokenizedExample]]:
    room = max(ROW_TOKENS - shared, *(_own_tokens(one, shared) for one in examples))
    rows: list[list[TokenizedExample]] = [[]]
    used = 0
    for one in examples:
        if used + _own_tokens(one, shared) > room:
            rows.append([])
            used = 0
        rows[-1].append(one)
        used += _own_tokens(one, shared)
    return rows


def _own_tokens(one: TokenizedExample, shared: int) -> int:
    """The last token predicts nothing, and is not computed."""
    return len(one.ids) - 1 - shared


def packed(layout: Layout, pad_id: int) -> Rows:
    shared = layout.shared
    input_ids = torch.full((len(layout.rows), layout.columns), pad_id)
    position_ids = torch.zeros_like(input_ids)
    owners = torch.full_like(input_ids, _PADDING)
    labels = torch.full_like(input_ids, IGNORED)
    for number, row in enumerate(layout.rows):
        input_ids[number, :shared] = torch.tensor(row[0].ids[:shared], dtype=torch.long)
        position_ids[number, :shared] = torch.arange(shared)
        owners[number, :shared] = _SHARED
        end = shared
        for owner, one in enumerate(row, start=1):
            begin, end = end, end + _own_tokens(one, shared)
            ids = torch.tensor(one.ids)
            answer = max(1, one.prompt_tokens)  # nothing predicts the first token of all
            input_ids[number, begin:end] = ids[shared:-1]
            position_ids[number, begin:end] = torch.arange(shared, len(ids) - 1)
            owners[number, begin:end] = owner
            labels[number, end - (len(ids) - answer) : end] = one.labels()[answer:]
    return Rows(input_ids, position_ids, owners, labels)


def row_losses(model: Any, rows: Rows, device: torch.device) -> torch.Tensor:
    owners = rows.owners.to(device)
    seen, by = owners[:, None, :], owners[:, :, None]
    sees = ((seen == by) | (seen == _SHARED)).tril()  # (rows, longest, longest)
    hidden = model.model(
        rows.input_ids.to(device),
        position_ids=rows.position_ids.to(device),
        attention_mask=sees[:, None],  # for all heads
        use_cache=False,
    ).last_hidden_state  # (rows, longest, hidden_size)
    labels = rows.labels.to(device)
    trained_on = labels != IGNORED
    logits = head(model, hidden[trained_on])  # (answer tokens, vocab_size)
    return F.cross_entropy(logits.float(), labels[trained_on], reduction="none")
