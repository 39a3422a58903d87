"""An account as text, a line for each question."""

from tpu.aot import Account

# Between the compiler's arithmetic and the products alone: the rest is norms, softmax, activations.
MOST_APART = 0.05


def as_text(account: Account, *, what: str) -> str:
    """What it is about, then memory, arithmetic, traffic and the least time; all modelled."""
    chip, many = account.chip, account.chips > 1
    clips = 1 / account.roofline_seconds
    rows = {
        "compiled in": f"{account.compile_seconds:.1f} s (measured here)",
        "memory a chip": (
            f"{_gb(account.memory_bytes)} of {_gb(chip.memory_bytes)} "
            f"({account.memory_bytes / chip.memory_bytes:.0%}): "
            f"arguments {_gb(account.argument_bytes)}, outputs {_gb(account.output_bytes)}, "
            f"temporary {_gb(account.temporary_bytes)}, program {_gb(account.program_bytes)}"
        ),
        "arithmetic a clip": (
            f"{_flops(account)}, {1e3 * account.arithmetic_seconds:.3f} ms at "
            f"{chip.flops_per_second / 1e12:.0f} TFLOP/s"
        ),
        "traffic a clip": (
            f"{account.traffic_bytes / 1e9:.3f} GB, {1e3 * account.traffic_seconds:.3f} ms at "
            f"{chip.bytes_per_second / 1e9:.0f} GB/s; "
            f"{account.flops / account.traffic_bytes:.0f} FLOP a byte"
        ),
        "roofline": (
            f"{1e3 * account.roofline_seconds:.3f} ms a clip, bound by {account.bound}: at most "
            f"{clips:,.0f} clips/s a chip" + (f", {clips * account.chips:,.0f} in all" * many)
        ),
    }
    if not account.fits:
        rows["roofline"] = "none: it doesn't fit into the memory of a chip"
    if account.estimated_seconds:
        rows["compiler's estimate"] = f"{1e3 * account.estimated_seconds:.3f} ms a clip"
    head = f"{what} on {account.topology}: modelled by the TPU compiler, nothing was run"
    return "\n".join([head, *(f"  {name:<20} {text}" for name, text in rows.items())])


def _flops(account: Account) -> str:
    """The compiler's figure; beside it the count of products, loud where they are far apart."""
    compiled, products = account.flops / 1e9, account.counted_flops / 1e9
    if abs(compiled / products - 1) > MOST_APART:
        return f"{compiled:.1f} GFLOP (BUT {products:.1f} of products, counted from the config)"
    return f"{compiled:.1f} GFLOP"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
