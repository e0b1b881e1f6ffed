"""Recipes: what is read, and what a wrong one reports."""

from pathlib import Path

import pytest

from loradrop_training.recipe import (
    MODULES,
    Recipe,
    RecipeError,
    find_recipe,
    keys,
    read_recipe,
    recipe_document,
    shipped_recipes,
)

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "training" / "loradrop_training" / "recipes").glob("*.yaml"))
GOOD = """\
name: acme
base:
  model: tiny
  profile: tiny-llama
data:
  train: train.jsonl
  prompt: "{text}"
  answer: label
output: out
"""


def read(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return read_recipe(file)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    return [line.removeprefix(f"{tmp_path / 'recipe.yaml'}") for line in str(caught.value).splitlines()]


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert (recipe.lora.rank, recipe.lora.modules, recipe.optimisation.dtype) == (16, MODULES, "auto")
    assert recipe.data.labels is None


def test_files_are_found_beside_the_recipe_wherever_it_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.json").write_text("{}")
    text = GOOD.replace("model: tiny", "model: model").replace("tiny-llama", "mine.json")
    recipe = read(tmp_path, text.replace("train.jsonl", "[a.jsonl, ../b.csv]"))
    assert recipe.data.train == (str(tmp_path / "a.jsonl"), str(tmp_path.parent / "b.csv"))
    assert (recipe.base.model, recipe.base.profile) == (str(tmp_path / "model"), str(tmp_path / "mine.json"))


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    optimisation = "optimisation: {learning_rate: 1e-3, batch_tokens: 8_192, epochs: 2.0, steps: null}\n"
    recipe = read(tmp_path, GOOD + optimisation)
    assert (recipe.optimisation.learning_rate, recipe.optimisation.batch_tokens) == (0.001, 8192)
    assert (recipe.optimisation.epochs, recipe.optimisation.steps) == (2, None)


def test_a_label_is_a_text_whatever_it_looks_like(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD.replace("  answer", "  labels: [yes, no, 1]\n  answer"))
    assert recipe.data.labels == ("yes", "no", "1")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_resolved_recipe_is_the_recipe(file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(file)
    assert read(tmp_path, recipe.to_yaml()) == recipe


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_data_of_each_recipe_is_there(file: Path) -> None:
    data = read_recipe(file).data
    assert all(Path(name).is_file() for name in (*data.train, *data.held_out))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("name: acme\n", ""), ", line 1: name is missing: of the adapter."),
        (("name: acme", "name: acme\nnmae: b"), ", line 2: there is no key nmae; did you mean name."),
        (("  model: tiny", "  modle: tiny"), ", line 3: there is no key base.modle; did you mean base.model."),
        (("  answer: label", "  answer: label\n  answer: b"), ", line 9: data.answer is there twice."),
        (("output: out", "output: [a]"), ", line 9: output is a text; found a list."),
        (("output: out", "output:"), ", line 9: output is a text; found nothing."),
        (("base:\n  model: tiny\n  profile: tiny-llama", "base: tiny"), ", line 2: base is a mapping of keys to values; found 'tiny'."),
        (("output: out", "output: out\nlora: {rank: sixteen}"), ", line 10: lora.rank is a whole number; found 'sixteen'."),
        (("output: out", "output: out\nlora: {rank: 16.5}"), ", line 10: lora.rank is a whole number; found '16.5'."),
        (("output: out", "output: out\nlora: {rank: 0}"), ", line 10: lora.rank is 0; it must be from 1 to 512."),
        (("output: out", "output: out\nlora: {alpha: .nan}"), ", line 10: lora.alpha is a number; found '.nan'."),
        (("output: out", "output: out\nlora: {dora: 1}"), ", line 10: lora.dora is true or false; found '1'."),
        (("output: out", "output: out\noptimisation: {schedule: step}"), ", line 10: optimisation.schedule is 'step'; it must be one of cosine, linear, constant."),
        (("  answer: label", "  answer: label\n  labels: [a, b, a]"), ", line 9: data.labels has 'a' twice."),
        (("  answer: label", "  answer: label\n  labels: [a]"), ", line 9: data.labels has 1 texts; it must have at least 2."),
        (("train: train.jsonl", "train: []"), ", line 6: data.train has 0 texts; it must have at least 1."),
        (("output: out", "output: out\noptimisation: {steps: -1}"), ", line 10: optimisation.steps is -1; it must be at least 1."),
    ],
)  # fmt: skip
def test_a_problem_is_reported_with_its_line_and_what_is_allowed(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    assert change[0] in GOOD
    found = problems(tmp_path, GOOD.replace(*change))
    assert problem in found


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("name: acme\n", "").replace("  model: tiny\n", "") + "lora: {rank: x, alpha: y}\n"
    assert len(problems(tmp_path, text)) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a recipe is a mapping of keys to values; found nothing"),
        ("- a\n", "a recipe is a mapping of keys to values; found a list"),
        ("a: [1\nb: 2", "not YAML"),
        ("data: {train: &x [*x]}", "data.train is a text; found a list"),
        ("[" * 100_000, "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "there is no key a"),
    ],
)
def test_what_is_no_recipe_is_reported_in_words(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in "".join(problems(tmp_path, text))


def test_a_file_that_cannot_be_read_is_reported_in_words(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"not UTF-8 \(byte 9\)"):
        read_recipe(tmp_path / "latin.yaml")


def test_every_key_is_documented() -> None:
    documented = {name: about for name, _, about in keys()}
    assert all(documented.values())
    assert {"name", "base.model", "data.train", "lora.rank", "optimisation.seed", "evaluation.examples"} <= set(
        documented
    )


def test_the_document_is_made_from_the_keys() -> None:
    assert (REPOSITORY / "docs" / "recipe.md").read_text() == recipe_document()


def test_a_shipped_recipe_is_found_by_its_name_and_a_file_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(shipped_recipes()) == {file.stem for file in RECIPES}
    assert read_recipe(find_recipe(Path("sentiment-tiny"))).name == "sentiment"
    (tmp_path / "sentiment-tiny").write_text(GOOD)
    assert read_recipe(find_recipe(Path("sentiment-tiny"))).name == "acme"


def test_a_name_that_is_neither_a_file_nor_a_recipe_names_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="sentiment-tiny"):
        find_recipe(tmp_path / "sentimnet-tiny")
