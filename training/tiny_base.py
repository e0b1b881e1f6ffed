"""Makes the tiny base: a Llama of 1.8 million parameters, in the files and with the special tokens of Llama-3.1, that has read made-up reviews.

    python -m training.tiny_base     ->  .cache/tiny-llama/

About a minute on two cores; the second run finds its own work and returns at once. It knows which words keep company and how a chat goes.
It has never been told what a sentiment is: that is left to the adapter.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import Document, documents

ROOT = Path(__file__).parents[1]
TINY_LLAMA_DIR = ROOT / ".cache" / "tiny-llama"

SEED = 20
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 512
TOKENIZER_DOCUMENTS = 20_000
STEPS = 300
BATCH, BLOCK = 32, 96  # sequences, tokens
LEARNING_RATE, WARMUP_STEPS = 4e-3, 20

# Llama-3.1's own, in its order, at the end of the vocabulary as there: 128000 there is 4080 here.
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 8)),
)
FIRST_SPECIAL = VOCAB_SIZE - len(SPECIAL_TOKENS)
# Llama-3.1's too: words take their space along, numbers come in threes.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, learned from the corpus, so that most words of its reviews are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=FIRST_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (f"{document.task}\n\n{document.text}\n\n{document.answer}" for document in documents(SEED))
    tokenizer.train_from_iterator(islice(texts, TOKENIZER_DOCUMENTS), trainer)
    # A small corpus may run out of pairs to merge: what is left of the vocabulary stays unused, as Llama's reserved tokens do.
    tokenizer.add_tokens([f"<|unused_{number}|>" for number in range(tokenizer.get_vocab_size(), FIRST_SPECIAL)])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", FIRST_SPECIAL)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_model() -> LlamaForCausalLM:
    """Llama-3.1 in small, with random weights."""
    torch.manual_seed(SEED)
    special = {token: FIRST_SPECIAL + number for number, token in enumerate(SPECIAL_TOKENS)}
    ends = [special["<|end_of_text|>"], special["<|eom_id|>"], special["<|eot_id|>"]]
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=special["<|begin_of_text|>"],
        eos_token_id=ends,
        pad_token_id=special["<|finetune_right_pad_id|>"],
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id, do_sample=False
    )
    return model


def chat(task: str, text: str) -> list[dict[str, str]]:
    """The one form of a task in this project: an instruction, an empty line, the text."""
    return [{"role": "user", "content": f"{task}\n\n{text}"}]


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """The corpus as one long row of tokens, cut into (BATCH, BLOCK + 1)."""

    def as_text(document: Document) -> str:
        if not document.task:
            return f"<|begin_of_text|>{document.text}<|end_of_text|>"
        prompt = tokenizer.apply_chat_template(
            chat(document.task, document.text), tokenize=False, add_generation_prompt=True
        )
        return f"{prompt}{document.answer}<|eot_id|>"

    row: list[int] = []
    reading = map(as_text, documents(SEED + 1))
    while True:
        for ids in tokenizer(list(islice(reading, 256)), add_special_tokens=False)["input_ids"]:
            row += ids
        while len(row) > BATCH * BLOCK:
            yield torch.tensor(row[: BATCH * BLOCK + 1]).unfold(0, BLOCK + 1, BLOCK)
            del row[: BATCH * BLOCK]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, max(0.02, 1 - (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS))),
    )
    model.train()
    started = time.perf_counter()
    smooth_loss = 0.0
    for step, batch in enumerate(islice(batches(tokenizer), STEPS), start=1):
        logits = model(batch[:, :-1]).logits  # (BATCH, BLOCK, VOCAB_SIZE)
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        smooth_loss = loss.item() if step == 1 else 0.9 * smooth_loss + 0.1 * loss.item()
        if step % 20 == 0 or step == STEPS:
            seconds = time.perf_counter() - started
            print(
                f"  step {step:>4}/{STEPS}  loss {smooth_loss:.3f} nats  {step * BATCH * BLOCK / seconds:>7,.0f} tokens/s"
                f"  {seconds:4.0f} s elapsed, {seconds / step * (STEPS - step):3.0f} s left",
                flush=True,
            )
    model.eval()


def main() -> None:
    tokenizer = make_tokenizer()
    model = make_model()
    print(f"training a Llama of {model.num_parameters():,} parameters")
    train(model, tokenizer)
    TINY_LLAMA_DIR.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(TINY_LLAMA_DIR)
    tokenizer.save_pretrained(TINY_LLAMA_DIR)


if __name__ == "__main__":
    main()
