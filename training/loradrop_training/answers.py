"""A model's greedy answers, and the log-likelihoods that it gives to answers offered to it.

Both take prompts and answers as whole texts, special tokens included, and give their results in the order of the prompts. A batch
holds prompts of about one length, padded on the left under a mask, so that what stands in a batch beside a prompt does not change its
answer. peft's `model.disable_adapter()` around a call makes it the base that answers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import DynamicCache

from .examples import IGNORED, TokenizedExample, answer_losses, padded

BATCH_TOKENS = 8192  # 1 GiB of an 8B Llama's keys and values in bfloat16


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    doing: str = "answering",
) -> list[str]:
    """The model's answer to each prompt up to the end of its turn, special tokens left out.

    Tokenization spaces are not cleaned up (" ." stays): nor does the server do so, whose answers smoke prompts are compared with.
    """
    rows = _ids(tokenizer, prompts)
    stops = sorted({*_as_list(model.generation_config.eos_token_id), *_as_list(tokenizer.eos_token_id)})
    answers = [""] * len(prompts)
    with _answering(model), tqdm(total=len(prompts), desc=doing, unit="prompt", disable=None) as bar:
        for batch in _batches(rows, room=max_new_tokens, batch_tokens=batch_tokens):
            ids, mask = _left_padded([rows[one] for one in batch], model.device)
            generated = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=stops or None,
                pad_token_id=_pad_id(tokenizer),
            )[:, ids.shape[1] :]  # (prompts of the batch, new tokens)
            texts = tokenizer.batch_decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for one, text in zip(batch, texts, strict=True):
                answers[one] = text
            bar.update(len(batch))
    return answers


def log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    doing: str = "scoring",
) -> NDArray[np.float64]:
    """How likely each answer is after each prompt, in nats, (prompts, answers); an answer brings its own end of turn.

    A prompt's keys and values are computed once; each answer is read after them and then forgotten again. So a long list
    of labels costs its own few tokens, and no more memory than one label.
    """
    rows, answer_rows = _ids(tokenizer, prompts), _ids(tokenizer, answers)
    if not all(rows) or not all(answer_rows):
        raise ValueError("A prompt or an answer without a token has no likelihood.")
    found = np.zeros((len(prompts), len(answers)))
    room = max(map(len, answer_rows), default=0)
    with _answering(model), tqdm(total=len(prompts), desc=doing, unit="prompt", disable=None) as bar:
        for batch in _batches(rows, room=room, batch_tokens=batch_tokens):
            ids, mask = _left_padded([rows[one] for one in batch], model.device)  # both (batch, longest prompt)
            lengths = mask.sum(dim=1, keepdim=True)  # (batch, 1)
            read = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                # That of a model with a sliding window forgets what it could not give back.
                past_key_values=DynamicCache(),
                use_cache=True,
                logits_to_keep=1,
            )
            first = read.logits[:, -1:].float().log_softmax(dim=-1)  # (batch, 1, vocab_size)
            for column, answer in enumerate(answer_rows):
                tokens = torch.tensor(answer, device=ids.device).expand(len(batch), -1)  # (batch, answer tokens)
                total = _chosen(first, tokens[:, :1])
                if len(answer) > 1:
                    given = tokens[:, :-1]
                    then = model(
                        input_ids=given,
                        attention_mask=torch.cat((mask, torch.ones_like(given)), dim=1),
                        position_ids=lengths + torch.arange(given.shape[1], device=ids.device),
                        past_key_values=read.past_key_values,
                        use_cache=True,
                    ).logits
                    read.past_key_values.crop(-given.shape[1])
                    total = total + _chosen(then.float().log_softmax(dim=-1), tokens[:, 1:])
                found[batch, column] = total.double().cpu().numpy()
            bar.update(len(batch))
    return found


def answer_log_likelihoods(
    model: Any,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    batch_tokens: int = BATCH_TOKENS,
    doing: str = "scoring",
) -> NDArray[np.float64]:
    """How likely the answers of each example are, all their tokens together, in nats: (examples,)."""
    found = np.zeros(len(examples))
    rows = [one.ids for one in examples]
    with _answering(model), tqdm(total=len(examples), desc=doing, unit="chat", disable=None) as bar:
        for batch in _batches(rows, room=0, batch_tokens=batch_tokens):
            inputs = padded([examples[one] for one in batch], pad_id).to(model.device)
            losses = answer_losses(model.get_base_model(), inputs)  # (answer tokens of the batch,)
            counts = (inputs.labels[:, 1:] != IGNORED).sum(dim=1).tolist()
            for one, nats in zip(batch, torch.split(losses, counts), strict=True):
                found[one] = -nats.double().sum().item()
            bar.update(len(batch))
    return found


def _chosen(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens (batch, tokens) of their log-probabilities (batch, tokens, vocab_size): (batch,)."""
    return log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(dim=1)


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return rows


def _batches(rows: Sequence[Sequence[int]], *, room: int, batch_tokens: int) -> list[list[int]]:
    """The rows' numbers, shortest first; a batch has at most `batch_tokens` with padding and `room` for each, or one row."""
    batches: list[list[int]] = []
    for one in sorted(range(len(rows)), key=lambda one: len(rows[one])):
        if not batches or (len(batches[-1]) + 1) * (len(rows[one]) + room) > batch_tokens:
            batches.append([])
        batches[-1].append(one)
    return batches[::-1]  # the longest first: what does not fit in memory fails at once


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (rows, longest). What pads is masked, so any token will do."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _pad_id(tokenizer: Any) -> int:
    """What fills an answer that ended before its neighbours; Llama-3.1's tokenizer has an end but no padding."""
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_id


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids
