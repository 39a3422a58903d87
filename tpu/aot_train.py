"""Compile a recipe's training step for a TPU without one, and account for it.

The step that `videomae pretrain` and `videomae finetune` run, augmentation, AdamW and all. It is
compiled whole for its memory. The compiler counts a loop's body once, so what a layer computes and
moves is told by programs of one and of two layers without a loop.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tpu.aot import Account, AotError, Request, account_of, prepare, quiet, refusal, tpu_mesh
from tpu.chips import parse_topology

if TYPE_CHECKING:
    from videomae_jax.training.settings import Recipe


def account_training(request: Request, recipe: "Recipe") -> Account:
    """Compile the step of a recipe, `request.batch` clips a chip, and say what it needs.

    The network and the dtype are the recipe's. All figures of a clip are of a whole step of it.

    Raises:
        AotError: as `tpu.aot.account`, and for a batch that the recipe's clips don't divide.
    """
    check_batch(request, recipe)
    chip, topology, _ = parse_topology(request.topology)
    prepare()
    devices = tpu_mesh(chip, topology).devices.flatten()
    start = time.perf_counter()
    with quiet(), ThreadPoolExecutor() as threads:
        whole, *few = threads.map(
            lambda each: compiled_step(request, each, devices), [recipe, *shallow(recipe)]
        )
    seconds = time.perf_counter() - start
    costs = [program.cost_analysis() for program in few]

    def of_a_clip(name: str) -> float | None:
        counts = [cost.get(name, -1.0) for cost in costs]
        return whole_count(counts, recipe) / request.batch if min(counts) > 0 else None

    counted = products_of_a_clip(recipe)
    return account_of(whole, request, of_a_clip, counted_flops=counted, compile_seconds=seconds)


def check_batch(request: Request, recipe: "Recipe") -> None:
    """Refuse clips that are no whole number of videos in each accumulated part.

    Raises:
        AotError: naming what divides.
    """
    together = recipe.input.repeats * recipe.optimizer.accumulate
    if request.batch % together:
        raise AotError(
            f"--batch {request.batch} is no multiple of {together}: the recipe makes "
            f"{recipe.input.repeats} clips of a video, in {recipe.optimizer.accumulate} parts"
        )


def shallow(recipe: "Recipe") -> list["Recipe"]:
    """The recipe with one layer a stack, then with two in the encoder, then in the decoder."""
    layers = [(1, 1), (2, 1), (1, 2)][: 3 if recipe.task == "pretrain" else 2]
    return [
        dataclasses.replace(
            recipe,
            model=dataclasses.replace(
                recipe.model, num_hidden_layers=encoder, decoder_num_hidden_layers=decoder
            ),
        )
        for encoder, decoder in layers
    ]


def whole_count(counts: Sequence[float], recipe: "Recipe") -> float:
    """What all layers count, from what the programs of `shallow` do."""
    config = recipe.model
    layers = (config.num_hidden_layers, config.decoder_num_hidden_layers)
    one, *two = counts
    # A recipe without a decoder has no program for it.
    return one + sum((more - one) * (length - 1) for more, length in zip(two, layers, strict=False))


def compiled_step(request: Request, recipe: "Recipe", devices: Any) -> Any:
    """The step for a mesh of `devices`, its state used up.

    Raises:
        AotError: for what can't be compiled.
    """
    import jax

    from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings
    from videomae_jax.training.checkpoints import named_leaves

    mesh = mesh_of(devices, sharding=request.sharding, model_axis=request.model_axis)
    run, state, batch = step_of(request, recipe, mesh.size)
    leaves = named_leaves(state)
    placed = param_shardings(leaves, mesh, sharding=request.sharding)
    shardings = jax.tree.structure(state).unflatten([placed[name] for name in leaves])
    spread = clip_sharding(mesh, sharding=request.sharding)
    state = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), state, shardings)
    batch = jax.tree.map(lambda leaf: leaf.update(sharding=spread), batch)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(run, donate_argnums=0, out_shardings=(shardings, whole))
    try:
        return step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        raise AotError(refusal(str(error), request)) from error


def step_of(request: Request, recipe: "Recipe", chips: int) -> tuple[Callable, Any, Any]:
    """(step of a state and a batch, the state, the batch of all chips), the last two abstract."""
    import jax
    import numpy as np

    from videomae_jax.model import abstract_params
    from videomae_jax.training.optimizer import learning_rates, make_optimizer
    from videomae_jax.training.step import build_model, init_state, make_step

    config, batch_size = recipe.model, chips * request.batch // recipe.input.repeats
    # Two layers at most are no loop then; of more the compiler is asked for memory alone.
    unroll = 2 if config.num_hidden_layers <= 2 and config.decoder_num_hidden_layers <= 2 else 1
    model = build_model(recipe, attention_backend=request.backend).clone(unroll=unroll)
    schedule = learning_rates(recipe.optimizer, batch_size=batch_size, steps_per_epoch=1000)
    optimizer = make_optimizer(
        recipe.optimizer, schedule=schedule, model_config=config, params=abstract_params(model)
    )
    step = make_step(recipe, optimizer, schedule=schedule, model=model)
    state = jax.eval_shape(lambda: init_state(recipe, model, optimizer))
    canvas = [recipe.input.canvas or side * 8 // 7 for side in config.image_size]
    shape = (batch_size, config.num_frames, *canvas, config.num_channels)
    batch = {
        "frames": jax.ShapeDtypeStruct(shape, np.uint8),
        "sizes": jax.ShapeDtypeStruct((batch_size, 2), np.int32),
    }
    if recipe.task == "finetune":
        batch["labels"] = jax.ShapeDtypeStruct((batch_size,), np.int32)

    def run(state: Any, batch: Any) -> Any:
        return step(state, batch, jax.random.fold_in(jax.random.key(recipe.seed), state.step))

    return run, state, batch


def products_of_a_clip(recipe: "Recipe") -> int:
    """FLOP of the products of a step of one clip, 2 for a multiply-add, counted from the recipe.

    A product has two in the backward pass, that of patches one. Attention has five there, as its
    kernels compute the scores again. With `remat` the layers' forward pass comes twice.
    """
    config, again = recipe.model, int(recipe.remat)
    tokens, pixels = config.num_tokens, config.tubelet_pixels
    encoder = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    if recipe.task == "finetune":
        patches, rest = tokens * pixels * config.hidden_size, config.hidden_size * config.num_labels
        stacks = [(tokens, *encoder)]
    else:
        from videomae_jax.training.step import mask_counts

        hidden, decoded = mask_counts(recipe.masking, config)
        visible, predicted = tokens - hidden, hidden if decoded is None else decoded
        width = config.decoder_hidden_size
        patches = visible * pixels * config.hidden_size
        rest = visible * config.hidden_size * width + predicted * width * pixels
        decoder = (config.decoder_num_hidden_layers, width, config.decoder_intermediate_size)
        stacks = [(visible, *encoder), (visible + predicted, *decoder)]
    layers = sum(
        number
        * (
            (3 + again) * length * (4 * width * width + 2 * width * inner)
            + (7 + 2 * again) * length * length * width
        )
        for length, number, width, inner in stacks
    )
    return 2 * (2 * patches + 3 * rest + layers)
