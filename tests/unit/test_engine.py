"""The engine that really answers: a Llama of random weights, and adapters of random weights beside it."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from local.engines import AdapterLoadError, Generation, Token, UnknownAdapterError
from local.engines.llama import Engine, PromptTooLongError
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

# Several adapters in one model is the purpose here.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")

PROMPT = "The soup was cold, and nobody apologized."
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def only_base(random_llama: Path) -> Engine:
    """An engine that never sees an adapter."""
    return Engine(random_llama)


@pytest.fixture
def engine(random_llama: Path) -> Engine:
    return Engine(random_llama)


def ask(engine: Engine, adapter: str | None = None, prompt: str = PROMPT, **options: Any) -> Generation:
    return engine.generate(prompt, adapter=adapter, **({"max_new_tokens": 8, "temperature": 0.0} | options))


def streamed(engine: Engine, adapter: str | None = None, **options: Any) -> Iterator[Token]:
    return engine.stream(PROMPT, adapter=adapter, **({"max_new_tokens": 8, "temperature": 0.0} | options))


def test_the_base_answers_bit_for_bit_the_same_before_with_and_after_adapters(
    engine: Engine, only_base: Engine
) -> None:
    alone = ask(only_base)
    assert ask(engine) == alone
    engine.load_adapter("a", good_tarball(seed=1))
    assert ask(engine) == alone
    assert ask(engine, "a").tokens != alone.tokens
    assert ask(engine) == alone
    engine.load_adapter("b", good_tarball(seed=2))
    engine.unload_adapter("a")
    assert ask(engine) == alone
    engine.unload_adapter("b")
    assert engine.adapters == ()
    assert ask(engine) == alone


def test_an_adapter_answers_the_same_whatever_stands_beside_it(engine: Engine) -> None:
    engine.load_adapter("a", good_tarball(seed=1))
    alone = ask(engine, "a")
    engine.load_adapter("b", good_tarball(seed=2))
    engine.load_adapter("c", tarball(adapter_files(seed=3, rank=8)))
    other = ask(engine, "b")
    assert other.tokens != alone.tokens
    assert ask(engine, "a") == alone
    engine.unload_adapter("c")
    assert ask(engine, "a") == alone
    assert ask(engine, "b") == other


def test_answers_that_are_under_way_together_do_not_mix(engine: Engine) -> None:
    for seed, name in enumerate("ab"):
        engine.load_adapter(name, good_tarball(seed=seed))
    names = ("a", "b", None)
    apart = [ask(engine, name).tokens for name in names]
    together = zip(*(streamed(engine, name) for name in names), strict=True)
    assert list(zip(*together, strict=True)) == apart


def test_the_scale_is_alpha_over_r_or_over_its_root(engine: Engine) -> None:
    engine.load_adapter("r", tarball(adapter_files(rank=4, lora_alpha=16)))
    engine.load_adapter("root", tarball(adapter_files(rank=4, lora_alpha=8, use_rslora=True)))
    engine.load_adapter("smaller", tarball(adapter_files(rank=4, lora_alpha=8)))
    assert ask(engine, "r") == ask(engine, "root")
    assert ask(engine, "smaller").tokens != ask(engine, "r").tokens


def test_an_adapter_adds_its_product_to_the_base(engine: Engine, random_llama: Path, tmp_path: Path) -> None:
    """Against the same thing done by hand: W + alpha/r · B·A, saved as a base of its own."""
    files = adapter_files(rank=4, lora_alpha=8, scale=0.05)
    merged = tmp_path / "merged"
    shutil.copytree(random_llama, merged)
    weights = load((merged / "model.safetensors").read_bytes())
    deltas = load(files["adapter_model.safetensors"])
    for name in [name for name in deltas if ".lora_A." in name]:
        product = deltas[name.replace(".lora_A.", ".lora_B.")] @ deltas[name]  # (out_features, in_features)
        weights[name.removeprefix("base_model.model.").replace(".lora_A", "")] += 8 / 4 * product
    (merged / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    engine.load_adapter("a", tarball(files))
    by_adapter, by_hand = ask(engine, "a").tokens, ask(Engine(merged)).tokens
    assert [token.id for token in by_adapter] == [token.id for token in by_hand]
    assert [token.logprob for token in by_adapter] == pytest.approx([token.logprob for token in by_hand], abs=1e-3)


def test_names_without_pefts_prefix_are_the_same_adapter(engine: Engine) -> None:
    files = adapter_files(seed=3)
    bare = {name.removeprefix("base_model.model."): one for name, one in load(files[WEIGHTS]).items()}
    engine.load_adapter("with", tarball(files))
    engine.load_adapter("without", tarball(files | {WEIGHTS: save(bare, {"format": "pt"})}))
    assert ask(engine, "without") == ask(engine, "with") != ask(engine)


def test_a_rank_above_the_bases_is_refused(engine: Engine) -> None:
    engine.load_adapter("eight", tarball(adapter_files(rank=8)), max_rank=8)
    with pytest.raises(AdapterLoadError, match="LoRA rank 16 is greater than max_lora_rank 8"):
        engine.load_adapter("sixteen", tarball(adapter_files(rank=16)), max_rank=8)


def with_config(**changes: Any) -> Callable[[Files], Files]:
    config = adapter_files(**changes)["adapter_config.json"]
    return lambda files: files | {"adapter_config.json": config}


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {found: data for found, data in files.items() if found != name}


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        tensors = load(files["adapter_model.safetensors"])
        change(tensors)
        return files | {"adapter_model.safetensors": save(tensors)}

    return changed


WEIGHTS = "adapter_model.safetensors"
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSALS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no config": (without("adapter_config.json"), r"^adapter_config\.json is missing at the root of the tarball$"),
    "no weights": (without("adapter_model.safetensors"), r"^adapter_model\.safetensors is missing at the root"),
    "a pickle": (
        lambda files: without("adapter_model.safetensors")(files) | {"adapter_model.bin": b"\x80\x04N."},
        r"adapter_model\.bin is a pickle, which is never loaded",
    ),
    "config no JSON": (lambda files: files | {"adapter_config.json": b"{"}, r"adapter_config\.json is no JSON"),
    "config a list": (lambda files: files | {"adapter_config.json": b"[]"}, r"holds a list, not an object"),
    "weights no safetensors": (
        lambda files: files | {"adapter_model.safetensors": b"\x80\x04N."},
        r"adapter_model\.safetensors cannot be read",
    ),
    "not LoRA": (with_config(peft_type="LOHA"), r"has the peft_type 'LOHA'; only 'LORA' is served"),
    "DoRA": (with_config(use_dora=True), r"sets use_dora"),
    "modules_to_save": (with_config(modules_to_save=["lm_head"]), r"sets modules_to_save"),
    "bias": (with_config(bias="all"), r"has the bias 'all'"),
    "rank no number": (with_config(r="4"), r"has the rank r='4'; it must be a whole number"),
    "rank 0": (with_config(r=0), r"has the rank r=0"),
    "alpha no number": (with_config(lora_alpha="8"), r"has lora_alpha='8'; it must be a number"),
    "another rank than the config's": (with_config(r=8), r"has the shape \(4, 352\); rank 8 on this base needs \(8, 352\)"),
    "wrong shape": (
        with_tensors(lambda tensors: tensors.update({Q_A: torch.zeros(4, 64)})),
        r"q_proj\.lora_A\.weight' has the shape \(4, 64\); rank 4 on this base needs \(4, 128\)",
    ),
    "unpaired": (
        with_tensors(lambda tensors: tensors.pop(Q_A)),
        r"lacks lora_A of the module 'model\.layers\.0\.self_attn\.q_proj'",
    ),
    "a weight of the base": (
        with_tensors(lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.zeros(4096, 128)})),
        r"holds the tensor 'base_model\.model\.lm_head\.weight', which is no LoRA weight",
    ),
    "a weight that peft would take for the base's": (
        with_tensors(lambda tensors: tensors.update({"model.norm.weight": torch.zeros(128)})),
        r"holds the tensor 'model\.norm\.weight', which is no LoRA weight",
    ),
    "a module that is not there": (
        with_tensors(
            lambda tensors: tensors.update({Q_A.replace("layers.0", "layers.9"): torch.zeros(4, 128)})
        ),
        r"adapts the module 'model\.layers\.9\.self_attn\.q_proj', which the base does not have",
    ),
    "no tensor": (with_tensors(lambda tensors: tensors.clear()), r"holds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_an_adapter_is_refused_in_words_and_changes_nothing(
    only_base: Engine, change: Callable[[Files], Files], reason: str
) -> None:
    before = ask(only_base)
    with pytest.raises(AdapterLoadError, match=reason):
        only_base.load_adapter("a", tarball(change(adapter_files())))
    assert only_base.adapters == ()
    assert ask(only_base) == before


def test_an_adapter_inside_a_folder_is_refused(only_base: Engine) -> None:
    with pytest.raises(AdapterLoadError, match=r"adapter_config\.json is missing at the root"):
        only_base.load_adapter("a", wrapped_tarball())


@pytest.mark.parametrize("body", [b"", b"no gzip", good_tarball()[:5000]], ids=["empty", "no gzip", "cut short"])
def test_a_tarball_that_cannot_be_read_is_refused(only_base: Engine, body: bytes) -> None:
    with pytest.raises(AdapterLoadError, match="the tarball cannot be read"):
        only_base.load_adapter("a", body)


def test_a_bomb_is_refused_before_it_fills_the_memory(only_base: Engine) -> None:
    member = tarfile.TarInfo("README.md")
    member.size = 4 << 30
    zeros = gzip.compress(bytes(32 << 20))  # a gzip file may be many, one behind the other
    bomb = gzip.compress(member.tobuf()) + zeros * 40
    assert len(bomb) < 2 << 20
    with pytest.raises(AdapterLoadError, match=r"the tarball unpacks to more than [\d,]+ bytes"):
        only_base.load_adapter("a", bomb)


def test_weights_are_not_read_when_their_size_is_said_to_be_too_large(only_base: Engine) -> None:
    member = tarfile.TarInfo("adapter_model.safetensors")
    member.size = 4 << 30
    with pytest.raises(AdapterLoadError, match=r"adapter_model\.safetensors has 4,294,967,296 bytes; the limit is"):
        only_base.load_adapter("a", gzip.compress(member.tobuf()))


def test_a_tarball_of_very_many_members_is_refused(only_base: Engine) -> None:
    crowd = tarball({f"{number}.txt": b"" for number in range(1001)})
    with pytest.raises(AdapterLoadError, match="the tarball has more than 1000 members"):
        only_base.load_adapter("a", crowd)


def test_a_link_in_place_of_the_weights_counts_as_missing(only_base: Engine) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        config = adapter_files()["adapter_config.json"]
        member = tarfile.TarInfo("adapter_config.json")
        member.size = len(config)
        archive.addfile(member, io.BytesIO(config))
        link = tarfile.TarInfo("adapter_model.safetensors")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(AdapterLoadError, match=r"adapter_model\.safetensors is missing"):
        only_base.load_adapter("a", gzip.compress(plain.getvalue()))


def test_a_name_is_given_once(engine: Engine) -> None:
    engine.load_adapter("a", good_tarball(seed=1))
    answer = ask(engine, "a")
    with pytest.raises(AdapterLoadError, match="an adapter named 'a' is loaded already; unload it first"):
        engine.load_adapter("a", good_tarball(seed=2))
    assert ask(engine, "a") == answer
    engine.unload_adapter("a")
    engine.load_adapter("a", good_tarball(seed=2))
    assert ask(engine, "a").tokens != answer.tokens


def test_a_name_may_hold_what_peft_forbids_in_its_own(engine: Engine) -> None:
    engine.load_adapter("tenant/acme.v1", good_tarball())
    assert engine.adapters == ("tenant/acme.v1",)
    assert ask(engine, "tenant/acme.v1").tokens != ask(engine).tokens


def test_an_adapter_that_is_not_loaded_is_told(engine: Engine) -> None:
    with pytest.raises(UnknownAdapterError, match="no adapter named 'a' is loaded"):
        ask(engine, "a")
    with pytest.raises(UnknownAdapterError, match="no adapter named 'a' is loaded"):
        engine.unload_adapter("a")


def test_an_answer_ends_with_an_error_when_its_adapter_is_unloaded_on_the_way(engine: Engine) -> None:
    engine.load_adapter("a", good_tarball(seed=1))
    answer = streamed(engine, "a")
    next(answer)
    engine.unload_adapter("a")
    engine.load_adapter("a", good_tarball(seed=2))  # another one under the name must not go on with the answer
    with pytest.raises(UnknownAdapterError, match="no adapter named 'a' is loaded"):
        next(answer)


@pytest.mark.parametrize("adapter", [None, "a"])
def test_a_stream_is_the_whole_answer_token_by_token(engine: Engine, adapter: str | None) -> None:
    engine.load_adapter("a", good_tarball())
    whole = ask(engine, adapter, max_new_tokens=12)
    pieces = list(streamed(engine, adapter, max_new_tokens=12))
    assert tuple(pieces) == whole.tokens
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.finish_reason == "length"
    assert len(pieces) == 12


def test_log_probabilities_are_of_the_chosen_tokens(only_base: Engine) -> None:
    answer = ask(only_base)
    assert all(token.logprob < 0 for token in answer.tokens)
    # Greedy of nearly uniform logits over 4096 tokens: above the mean, far from certain.
    assert all(token.logprob > -8.4 for token in answer.tokens)


def test_a_stop_string_is_held_back_across_tokens_and_cut_off(only_base: Engine) -> None:
    whole = ask(only_base, max_new_tokens=12)
    pieces = [token.text for token in whole.tokens]
    ends = list(accumulate(map(len, pieces)))
    # The end of one token with the beginning of the next, where that occurs for the first time.
    stop, end = next(
        (stop, place - 1)
        for place in ends[1:-1]
        if whole.text.find(stop := whole.text[place - 1 : place + 1]) == place - 1
    )

    stopped = ask(only_base, max_new_tokens=12, stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[:end]
    sent = ""
    for token in streamed(only_base, max_new_tokens=12, stop=[stop]):
        sent += token.text
        assert whole.text[:end].startswith(sent)  # nothing that has been sent must be taken back
    assert sent == whole.text[:end]


def test_what_was_held_back_for_a_stop_string_that_never_comes_is_sent_at_the_end(only_base: Engine) -> None:
    whole = ask(only_base)
    never = whole.text[-2:] + "~never~"
    answer = ask(only_base, stop=[never])
    assert (answer.text, answer.finish_reason) == (whole.text, "length")
    assert [token.id for token in answer.tokens] == [token.id for token in whole.tokens]


def test_an_answer_ends_at_the_token_that_ends_a_turn(random_llama: Path, only_base: Engine, tmp_path: Path) -> None:
    whole = [token.id for token in ask(only_base).tokens]
    place = whole.index(whole[-1])  # a random model likes to repeat itself
    ending = tmp_path / "ending"
    shutil.copytree(random_llama, ending)
    settings = json.loads((ending / "generation_config.json").read_text())
    (ending / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [whole[place]]}))
    answer = ask(Engine(ending))
    assert answer.finish_reason == "eos_token"
    assert [token.id for token in answer.tokens] == whole[: place + 1]
    assert answer.tokens[-1].text == ""


def test_a_prompt_that_fills_the_context_is_refused(only_base: Engine) -> None:
    with pytest.raises(PromptTooLongError, match=r"the prompt has \d+ tokens and the model's context holds 512"):
        ask(only_base, prompt="word " * 600)


def test_an_answer_ends_where_the_context_does(only_base: Engine) -> None:
    long = ask(only_base, prompt=" good" * 509, max_new_tokens=50)
    assert long.prompt_tokens + len(long.tokens) == 512
    assert long.finish_reason == "length"


def test_a_chat_is_told_in_the_template_of_llama(only_base: Engine) -> None:
    prompt = only_base.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hello "}]
    )
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_prompt_that_begins_the_text_itself_gets_no_second_beginning(only_base: Engine) -> None:
    bare, begun = ask(only_base), ask(only_base, prompt=f"<|begin_of_text|>{PROMPT}")
    assert begun == bare


def test_a_temperature_samples(only_base: Engine) -> None:
    torch.manual_seed(0)
    answers = {ask(only_base, temperature=1.5).text for _ in range(3)}
    assert len(answers) == 3
