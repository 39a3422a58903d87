"""How much do frozen features know? Linear and attentive probes, and nearest neighbours.

linear      multinomial logistic regression on standardised features, by L-BFGS; the weight
            decay is the one of `DECAYS` that does best on a part held out of the training set
attentive   one block of cross-attention with a learnt query on the tokens, by AdamW
knn         the classes of the `NEIGHBOURS` most similar training videos, each weighted by
            exp(cosine / `TEMPERATURE`)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Float32, Int

DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
NEIGHBOURS = 20
TEMPERATURE = 0.07
STEPS = 200
"""Of L-BFGS, at most; it ends when the gradient is smaller than `SMALL`."""
SMALL = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """logits = features @ kernel + bias, of features as they are: standardising is folded in.

    decay: the weight decay that was chosen; accuracies: top-1 on the held-out part for each one.
    """

    kernel: np.ndarray
    bias: np.ndarray
    decay: float
    accuracies: dict[float, float]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits [N, K]."""
        return np.asarray(features, np.float32) @ self.kernel + self.bias


def fit_linear(
    features: Float[np.ndarray, "N D"], labels: Int[np.ndarray, "N"], classes: int, *, seed: int = 0
) -> LinearProbe:
    """Fit the linear probe; `seed` chooses the part that is held out for the weight decay.

    With fewer than ten videos nothing is held out, and the middle of `DECAYS` taken.
    """
    values = np.asarray(features, np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    # What is the same for all videos tells nothing.
    deviation = np.where(deviation > 0, deviation, 1.0)
    standard = ((values - mean) / deviation).astype(np.float32)
    out, accuracies = held_out(labels, seed=seed), {}
    if out.any():
        for decay in DECAYS:
            kernel, bias = _fit(standard, labels, ~out, classes, decay)
            said = (standard[out] @ kernel + bias).argmax(axis=1)
            accuracies[decay] = float((said == labels[out]).mean())
    # Of equals the middle one, which is the furthest from doing harm.
    middle = DECAYS[len(DECAYS) // 2]
    best = max(DECAYS, key=lambda decay: (accuracies.get(decay, 0.0), -abs(np.log(decay / middle))))
    kernel, bias = _fit(standard, labels, np.ones(len(labels), bool), classes, best)
    kernel = kernel / deviation[:, None]
    return LinearProbe(
        kernel=kernel.astype(np.float32),
        bias=(bias - mean @ kernel).astype(np.float32),
        decay=best,
        accuracies=accuracies,
    )


def held_out(labels: Int[np.ndarray, "N"], *, seed: int) -> np.ndarray:
    """bool [N], True for about `HELD_OUT` of the videos of each class, never for all of one."""
    out = np.zeros(len(labels), bool)
    if len(labels) < 10:
        return out
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        # Rounded at random, so that small classes are held out, too, as often as they should.
        count = int(HELD_OUT * len(members) + generator.random())
        out[members[: min(count, len(members) - 1)]] = True
    return out


def _fit(
    features: np.ndarray, labels: np.ndarray, used: np.ndarray, classes: int, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, float64, that do best on the rows that are `used`."""
    # All rows, whichever count: one shape, one program.
    share = (used / used.sum()).astype(np.float32)
    kernel, bias = _minimise(features, labels, share, classes, decay)
    return np.asarray(kernel, np.float64), np.asarray(bias, np.float64)


@functools.partial(jax.jit, static_argnums=3)
def _minimise(
    features: Float32[Array, "N D"],
    labels: Int[Array, "N"],
    share: Float32[Array, "N"],
    classes: int,
    decay: Any,
) -> tuple[Array, Array]:
    """Kernel [D, K] and bias [K] of least cross-entropy, each row's times its share, plus decay.

    The decay adds decay / 2 times the sum of squares of the kernel.
    """
    import optax

    def loss(weights: tuple[Array, Array]) -> Array:
        kernel, bias = weights
        logits = jnp.matmul(features, kernel, precision="highest") + bias
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(share * entropies) + decay / 2 * jnp.sum(kernel**2)

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)
    start = (jnp.zeros((features.shape[1], classes)), jnp.zeros(classes))

    def step(carry: Any) -> Any:
        weights, state, count, _ = carry
        value, gradient = value_and_gradient(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        moved = optax.apply_updates(weights, updates)
        return moved, state, count + 1, optax.tree.norm(gradient)

    def unfinished(carry: Any) -> Any:
        return (carry[2] < STEPS) & (carry[3] > SMALL)

    return jax.lax.while_loop(unfinished, step, (start, solver.init(start), 0, jnp.inf))[0]


def knn(
    features: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "N"],
    queries: Float[np.ndarray, "M D"],
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[np.ndarray, "M labels"]:
    """The share of each class among a query's nearest neighbours, by weight."""
    known, asked = (_on_sphere(np.asarray(each, np.float32)) for each in (features, queries))
    neighbours = min(neighbours, len(known))
    shares = np.zeros((len(asked), classes))
    for start in range(0, len(asked), 1024):
        similar = asked[start : start + 1024] @ known.T
        nearest = np.argpartition(-similar, neighbours - 1, axis=1)[:, :neighbours]
        closeness = np.take_along_axis(similar, nearest, axis=1).astype(np.float64)
        weights = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / temperature)
        rows = np.arange(start, start + len(similar))[:, None]
        np.add.at(shares, (rows, labels[nearest]), weights)
    return shares / shares.sum(axis=1, keepdims=True)


def _on_sphere(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


class AttentiveProbe(nn.Module):
    """Tokens [B, L, D] -> logits [B, classes]: a learnt query that attends to all of them."""

    classes: int
    heads: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        width = tokens.shape[-1]
        query = self.param("query", nn.initializers.normal(0.02), (1, 1, width))
        query = jnp.broadcast_to(query, (len(tokens), 1, width))
        attend: Any = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = query + attend(query, nn.LayerNorm(name="norm_tokens")(tokens))
        hidden = nn.gelu(nn.Dense(4 * width, name="fc1")(nn.LayerNorm(name="norm")(x)))
        x = x + nn.Dense(width, name="fc2")(hidden)
        return nn.Dense(self.classes, name="classifier")(nn.LayerNorm(name="fc_norm")(x)[:, 0])


def fit_attentive(
    tokens: np.ndarray,
    labels: Int[np.ndarray, "N"],
    probe: AttentiveProbe,
    *,
    epochs: int = 30,
    batch: int = 64,
    base_lr: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> Any:
    """The parameters of the probe after training on tokens [N, L, D], which may lie on the disk.

    AdamW under a cosine that falls to 0 after a warm-up of a tenth of the steps; batches are drawn
    anew in each epoch.
    """
    import optax

    batch = min(batch, len(labels))
    per_epoch = len(labels) // batch
    total = epochs * per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, base_lr, max(1, total // 10), total + 1)
    optimizer = optax.adamw(schedule, weight_decay=weight_decay)

    def loss(params: Any, part: Array, wanted: Array) -> Array:
        logits: Any = probe.apply({"params": params}, part.astype(jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

    @jax.jit
    def step(params: Any, state: Any, part: Array, wanted: Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, part, wanted), state, params)
        return optax.apply_updates(params, updates), state

    first = jnp.zeros((1, *tokens.shape[1:]))
    params = probe.init(jax.random.key(seed), first)["params"]
    state = optimizer.init(params)
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(len(labels))
        for start in range(0, per_epoch * batch, batch):
            # In the order of the file, which is read from the disk.
            chosen = np.sort(order[start : start + batch])
            params, state = step(params, state, tokens[chosen], labels[chosen])
    return jax.tree.map(np.asarray, params)


def apply_attentive(
    probe: AttentiveProbe, params: Any, tokens: np.ndarray, *, batch: int = 64
) -> np.ndarray:
    """Logits [N, classes] of tokens [N, L, D], a batch at a time."""
    apply = jax.jit(lambda part: probe.apply({"params": params}, part.astype(jnp.float32)))
    logits = []
    for start in range(0, len(tokens), batch):
        part = np.asarray(tokens[start : start + batch])
        # One shape, one program.
        padded = np.zeros((batch, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        logits.append(np.asarray(apply(padded))[: len(part)])
    return np.concatenate(logits)
