"""The figures of an evaluation as lines for a terminal."""

from typing import Any

MOST_CLASSES = 20
"""Of a table with a line for each class, and of a confusion matrix."""
MOST_PAIRS = 10


def as_text(figures: dict[str, Any]) -> str:
    """All of it, for any kind of model; what has many classes is shown by its extremes."""
    if "top1" in figures:
        parts = [_accuracy(figures), _classes(figures), _pairs(figures), _matrix(figures)]
    elif "map" in figures:
        parts = [_precision(figures), _classes(figures)]
    else:
        parts = [_errors(figures)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def percent(share: float | None) -> str:
    """As in "83.3 %"; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of columns: the first one to the left, the others to the right."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]


def accuracy(figures: dict[str, Any], published: dict[str, Any] | None = None) -> list[str]:
    """Lines of a table: top-1 and top-5 with their intervals, and what was published of them."""
    interval = figures["interval"]
    head, rows = ["", "here", f"{100 * interval['level']:.0f} % interval"], []
    for name, key in (("top-1", "top1"), ("top-5", "top5")):
        low, high = interval[key]
        rows.append([name, percent(figures[key]), f"{100 * low:.1f} to {100 * high:.1f} %"])
        if published is not None:
            rows[-1].append(percent(published[key]))
    return table([*head, *["published"] * (published is not None)], rows)


def _accuracy(figures: dict[str, Any]) -> list[str]:
    published = figures["published"]
    lines = [*_videos(figures), *accuracy(figures, published)]
    if published is not None:
        lines.append(f"published: {published['name']}, {published['views']} views")
        if published["num_heads"] != figures["num_heads"]:
            lines.append(
                f"it was trained with {published['num_heads']} heads, this is with "
                f"{figures['num_heads']}: try --num-heads {published['num_heads']}"
            )
    return lines


def _videos(figures: dict[str, Any]) -> list[str]:
    failed = figures["failed"]
    lines = [
        f"{figures['count']} videos" + (f", {failed} could not be read" if failed else ""),
        f"views {figures['views']}, sampling {figures['sampling']}, {figures['dtype']}",
    ]
    if figures["shuffle_frames"] is not None:
        lines.append(f"frames of each clip in random order (seed {figures['shuffle_frames']})")
    return lines


def _precision(figures: dict[str, Any]) -> list[str]:
    return [*_videos(figures), f"mean average precision {percent(figures['map'])}"]


def _errors(figures: dict[str, Any]) -> list[str]:
    def row(name: str, entry: dict[str, Any]) -> list[str]:
        r2 = "-" if entry["r2"] is None else f"{entry['r2']:.4f}"
        return [name, f"{entry['mse']:.6g}", f"{entry['mae']:.6g}", r2]

    rows = [row("all", figures)]
    if len(figures["per_output"]) > 1:
        rows += [row(f"output {i}", entry) for i, entry in enumerate(figures["per_output"])]
    return [*_videos(figures), *table(["", "MSE", "MAE", "R2"], rows)]


def _classes(figures: dict[str, Any]) -> list[str]:
    """A line for each class that some video has; of many, for the worst ones."""
    measure = "accuracy" if "top1" in figures else "average_precision"
    entries = [entry for entry in figures["per_class"] if entry["count"]]
    title = "class"
    if len(entries) > MOST_CLASSES:
        title = f"the {MOST_CLASSES} worst of {len(entries)} classes"
        entries = sorted(entries, key=lambda entry: entry[measure])[:MOST_CLASSES]
    rows = [[entry["label"], str(entry["count"]), percent(entry[measure])] for entry in entries]
    return table([title, "videos", measure.replace("_", " ")], rows)


def _pairs(figures: dict[str, Any]) -> list[str]:
    """Which classes are taken for which most often."""
    names = [entry["label"] for entry in figures["per_class"]]
    pairs = [
        (count, names[true], names[said], figures["per_class"][true]["count"])
        for true, row in enumerate(figures["confusion"])
        for said, count in enumerate(row)
        if count and true != said
    ]
    pairs.sort(key=lambda pair: -pair[0])
    if not pairs:
        return []
    rows = [[f"{true} as {said}", f"{n} of {total}"] for n, true, said, total in pairs[:MOST_PAIRS]]
    return table(["most often confused", "videos"], rows)


def _matrix(figures: dict[str, Any]) -> list[str]:
    """A row for each class that is true, a column for each that is said, up to `MOST_CLASSES`."""
    entries = figures["per_class"]
    if len(entries) > MOST_CLASSES:
        return []
    head = ["true \\ said", *(str(entry["index"]) for entry in entries)]
    rows = [
        [f"{entry['index']} {entry['label']}", *(str(count) if count else "." for count in row)]
        for entry, row in zip(entries, figures["confusion"], strict=True)
    ]
    return table(head, rows)
