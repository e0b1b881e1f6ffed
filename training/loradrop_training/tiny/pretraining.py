"""The pretraining of the tiny base: its tokenizer, its model, and the made-up reviews that it reads."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from ..device import one_thread
from ..examples import Batch, Example, answer_loss, batches, chat_example, tokenize
from ..loop import Bar
from .corpus import Document, documents

SEED = 20
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 512
TOKENIZER_DOCUMENTS = 20_000
STEPS = 400
BATCH_TOKENS = 3072
POOL_DOCUMENTS = 1024  # that share out into batches of equally long ones
# Muon for the matrices of the layers; AdamW for the rest, fast for the embeddings: most words are seen some dozens of times.
MATRIX_RATE, EMBEDDING_RATE, HEAD_RATE = 0.02, 0.04, 4e-3
EMBEDDING_DECAY = 0.1
WARMUP_STEPS = 20

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
    """Byte-level BPE, trained on the corpus, so that most words of its reviews are one token."""
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
    texts = (
        f"user\n\n{document.task}\n\n{document.text}assistant\n\n{document.answer}" for document in documents(SEED)
    )
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


def reading(tokenizer: Any) -> Iterator[Batch]:
    """The corpus without end. A chat's prompt is given, not trained on."""

    def as_example(document: Document) -> Example:
        if not document.task:
            return Example("<|begin_of_text|>", f"{document.text}<|end_of_text|>")
        return chat_example(tokenizer, f"{document.task}\n\n{document.text}", document.answer)

    dice = random.Random(SEED)
    source = map(as_example, documents(SEED + 1))
    while True:
        pool = tokenize(tokenizer, list(islice(source, POOL_DOCUMENTS)))
        yield from batches(pool, max_tokens=BATCH_TOKENS, pad_id=tokenizer.pad_token_id, dice=dice)


def train(model: Any, tokenizer: Any) -> None:
    matrices = list(model.model.layers.parameters())
    matrices, gains = [one for one in matrices if one.ndim == 2], [one for one in matrices if one.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(
        [
            {"params": model.model.embed_tokens.parameters(), "lr": EMBEDDING_RATE, "weight_decay": EMBEDDING_DECAY},
            {"params": [*gains, *model.model.norm.parameters(), *model.lm_head.parameters()], "lr": HEAD_RATE},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )

    def share_of_rate(step: int) -> float:
        return min((step + 1) / WARMUP_STEPS, max(0.02, 1 - (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate) for optimizer in (muon, adamw)]
    model.train()
    with Bar(STEPS) as bar:
        for step, batch in enumerate(islice(reading(tokenizer), STEPS), start=1):
            loss = answer_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip((muon, adamw), schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            bar.show(step, loss.item(), batch.tokens)
    model.eval()


def make_tiny_base(folder: Path) -> None:
    """Fills the folder with the model and its tokenizer, as save_pretrained writes them."""
    transformers_logging.disable_progress_bar()
    with one_thread():
        tokenizer = make_tokenizer()
        model = make_model()
        print(f"training the tiny base, a Llama of {model.num_parameters():,} parameters, once", flush=True)
        train(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
