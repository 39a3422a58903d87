"""The training step compiled for a TPU: its count of products, its layers, and what it holds."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import TINY
from tpu.__main__ import main, parse
from tpu.aot import AotError, Request
from tpu.aot_train import check_batch, products_of_a_clip, shallow, whole_count
from tpu.commands.aot import chosen_recipe
from videomae_jax.training.recipes import RECIPES
from videomae_jax.training.settings import Augment, Input, Masking, Optimizer, Recipe

ROOT = Path(__file__).parents[1]
NO_LIBTPU = importlib.util.find_spec("libtpu") is None
FINETUNE = Recipe(
    task="finetune",
    model=TINY,
    input=Input(batch_size=8),
    optimizer=Optimizer(base_lr=1e-3, epochs=1.0, warmup_epochs=0.0),
    augment=Augment(crop="centre"),
    remat=False,
)
PRETRAIN = dataclasses.replace(FINETUNE, task="pretrain", masking=Masking(ratio=0.5))


def test_products_of_a_step_counted_by_hand():
    config = dataclasses.replace(RECIPES["small-k400-finetune"].model, num_labels=400)
    recipe = dataclasses.replace(FINETUNE, model=config)
    projections = 1568 * (4 * 384 * 384 + 2 * 384 * 1536)
    scores = 1568 * 1568 * 384
    others = 2 * 1568 * 1536 * 384 + 3 * 384 * 400
    assert products_of_a_clip(recipe) == 2 * (12 * (3 * projections + 7 * scores) + others)
    again = dataclasses.replace(recipe, remat=True)
    assert products_of_a_clip(again) == 2 * (12 * (4 * projections + 9 * scores) + others)


def test_pretraining_counts_visible_tokens_in_the_encoder_and_all_in_the_decoder():
    config = RECIPES["small-k400-pretrain"].model
    recipe = dataclasses.replace(PRETRAIN, model=config, masking=Masking(ratio=0.9))
    encoder = 3 * 160 * (4 * 384 * 384 + 2 * 384 * 1536) + 7 * 160 * 160 * 384
    decoder = 3 * 1568 * (4 * 192 * 192 + 2 * 192 * 768) + 7 * 1568 * 1568 * 192
    others = 2 * 160 * 1536 * 384 + 3 * (160 * 384 * 192 + 1408 * 192 * 1536)
    assert products_of_a_clip(recipe) == 2 * (12 * encoder + 4 * decoder + others)


@pytest.mark.parametrize("recipe", [FINETUNE, PRETRAIN], ids=lambda recipe: recipe.task)
def test_layers_are_told_by_programs_of_one_and_two(recipe):
    model = dataclasses.replace(TINY, num_hidden_layers=9, decoder_num_hidden_layers=4)
    recipe = dataclasses.replace(recipe, model=model)

    def counted(config):
        decoder = config.decoder_num_hidden_layers if recipe.task == "pretrain" else 0
        return 100 + 7 * config.num_hidden_layers + 3 * decoder

    counts = [counted(each.model) for each in shallow(recipe)]
    assert whole_count(counts, recipe) == counted(model)


def test_clips_are_whole_videos_in_each_part():
    recipe = dataclasses.replace(
        FINETUNE,
        input=Input(batch_size=8, repeats=2),
        optimizer=dataclasses.replace(FINETUNE.optimizer, accumulate=3),
    )
    check_batch(Request(topology="v5e", config=TINY, batch=12), recipe)
    with pytest.raises(AotError, match="--batch 8 is no multiple of 6: the recipe makes 2 clips"):
        check_batch(Request(topology="v5e", config=TINY, batch=8), recipe)


def test_a_recipe_is_taken_with_what_other_options_say():
    line = ["aot", "--topology", "v5e", "--recipe", "small-k400-finetune", "--dtype", "float32"]
    found = chosen_recipe(parse([*line, "--num-labels", "7", "--num-heads", "12"]))
    assert (found.model.num_labels, found.model.num_attention_heads) == (7, 12)
    assert (found.dtype, found.optimizer) == ("float32", RECIPES["small-k400-finetune"].optimizer)
    assert chosen_recipe(parse(line[:3])) is None


def test_an_unknown_recipe_is_one_line(capsys):
    assert main(["aot", "--topology", "v5e", "--recipe", "nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tpu: error: no recipe 'nothing'; one of: tiny-pretrain, ")
    assert error.count("\n") == 1


@pytest.mark.tpu
@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu, the TPU compiler: pip install libtpu")
def test_both_tasks_compile_for_a_slice_and_a_sharded_state_is_smaller(tmp_path):
    script = tmp_path / "compile.py"
    script.write_text(
        "import dataclasses, json\n"
        "from tpu import aot\n"
        "aot.set_environment()\n"
        "from tests.test_tpu_aot_train import FINETUNE, PRETRAIN, TINY\n"
        "from tpu.aot_train import account_training\n"
        "config = dataclasses.replace(TINY, hidden_size=128)\n"
        "found = {}\n"
        "for recipe, sharding in (\n"
        "    (FINETUNE, 'replicated'), (FINETUNE, 'fsdp'), (PRETRAIN, 'replicated')\n"
        "):\n"
        "    recipe = dataclasses.replace(recipe, model=config)\n"
        "    request = aot.Request(\n"
        "        topology='v5e:2x2', config=config, batch=2, sharding=sharding\n"
        "    )\n"
        "    name = f'{recipe.task} {sharding}'\n"
        "    found[name] = account_training(request, recipe).to_dict()\n"
        "print(json.dumps(found))\n"
    )
    # Without the suite's platform and flags, as a user's shell has none.
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for account in found.values():
        assert account["chips"] == 4
        assert 0 < account["memory_bytes"] < 1e9
        assert account["traffic_bytes"] > 0
        # Products are not all that is computed.
        assert account["flops"] > account["counted_flops"] / 2
    whole, cut = (found[f"finetune {way}"]["argument_bytes"] for way in ("replicated", "fsdp"))
    assert cut < 0.6 * whole
