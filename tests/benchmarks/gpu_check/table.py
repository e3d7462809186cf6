"""The results as text: a line for each, what is missing with its reason at the end."""

from __future__ import annotations

from typing import Any

from gpu_check.settings import groups

Row = dict[str, Any]


def table(document: dict[str, Any]) -> str:
    """Everything that was found, then every task that has not ended well."""
    size = "tiny sizes (this says nothing of speed)" if document["tiny"] else "full sizes"
    lines = [f"GPU check, {document['date']}, {size}, {document['seconds']:.0f} s"]
    order = list(_LINES)
    # By part; within one as they were begun, not as they ended.
    processes = [x for group in groups(document["tiny"]) for x in group.processes]
    names = [task.name for tasks in processes for task in tasks]
    rows = sorted(
        document["rows"], key=lambda row: (order.index(row["part"]), names.index(row["name"]))
    )
    shown = None
    for row in rows:
        if row["part"] != shown:
            shown = row["part"]
            lines += ["", _TITLES[shown]]
        lines.append("  " + row_line(row))
    lost = [t for t in document["tasks"] if t["status"] != "ok"]
    lines += ["", f"{len(document['tasks']) - len(lost)} of {len(document['tasks'])} tasks done"]
    lines += [f"  {t['part']} {t['name']}: {t['status']}" for t in lost]
    missed = [row for row in rows if row.get("missed")]
    lines += [f"  MISSED {row['part']} {row['name']}: {row['missed']}" for row in missed]
    return "\n".join(lines)


def row_line(row: Row) -> str:
    """One result in one line (a profile has some more)."""
    line = _LINES[row["part"]](row)
    return f"{line}  MISSED: {row['missed']}" if row.get("missed") else line


def _environment(row: Row) -> str:
    shown = {k: v for k, v in row.items() if k not in ("part", "name")}
    return ", ".join(
        f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )


def _rates(row: Row) -> str:
    products = ", ".join(f"{kind} {row[kind]:.1f}" for kind in ("bf16", "tf32", "fp32"))
    return f"matrix product, TFLOP/s: {products}; copy {row['copy_gb_per_s']:.0f} GB/s"


def _correctness(row: Row) -> str:
    term, gradient = row["bounds"]
    return (
        f"{row['name']:14} {row['precision']} {row['place']:16} terms {row['term_error']:.1e} "
        f"({row['worst_term']}; bound {term:g}), gradients {row['gradient_error']:.1e} "
        f"(bound {gradient:g})"
    )


def _steps(row: Row) -> str:
    return f"{row['name']:14} {row['steps']} steps, loss {row['first']:.3f} to {row['last']:.3f}"


def _resume(row: Row) -> str:
    how = "equal to the bit" if row["equal"] else f"differs by {row['error']:.1e}"
    without = ", ".join(row["without_deterministic_kernel"])
    return f"{row['name']:14} {how}" + (f"; no deterministic kernel: {without}" if without else "")


def _compile(row: Row) -> str:
    return f"{row['name']:24} {row['seconds']:.0f} s"


def _shards(row: Row) -> str:
    return f"{row['photos']} photos of {row['mean_kb']:.0f} kB"


def _speed(row: Row) -> str:
    goal = row["goal_images_per_second"]
    beside = "" if goal is None else f", goal {goal:.0f}"
    return (
        f"{row['name']:24} {row['mode']:8} batch {row['batch']:<4} "
        f"{row['images_per_second']:8.0f} img/s, {row['share_of_roof']:4.0%} of "
        f"{row['roof_images_per_second']:.0f} ({row['gflop_per_image']:.1f} GFLOP at "
        f"{row['matmul_tflops']:.0f} TFLOP/s){beside}, {row['peak_gib']:.1f} GiB, "
        f"first {row['first_seconds']:.1f} s"
    )


def _waits(row: Row) -> str:
    calls = ", ".join(f"{n:g} {name}" for name, n in row["waiting_calls"].items()) or "none"
    lines = [
        f"{row['name']:16} batch {row['batch']}: {row['images_per_second']:.0f} img/s in the loop, "
        f"{1000 * row['host_seconds']:.1f} ms of the host a step; waiting calls a step: {calls}",
        f"    device idle {row['idle_share']:.1%}, {row['kernels']:.0f} kernels a step, "
        f"{row['gaps']:.0f} gaps above 20 µs, longest {row['longest_gap_us']:.0f} µs",
        *(f"    waits: {place}" for place in row["told"]),
        *(
            f"    {kernel['share']:5.1%} {kernel['calls']:5.0f} x {kernel['name']}"
            for kernel in row["dearest"]
        ),
    ]
    return "\n  ".join(lines)


def _draws(row: Row) -> str:
    times = ", ".join(f"{name} {ms:.2f}" for name, ms in row["milliseconds"].items())
    return f"ms of the host for {row['images']} images: {times}"


def _loader(row: Row) -> str:
    text = (
        f"{row['part']:16} {row['images_per_second']:.0f} img/s, {row['workers']} workers, "
        f"batch {row['batch']}"
    )
    share = row.get("waiting_share")
    return text if share is None else f"{text}, {share:.0%} of the time waiting for the loader"


_LINES = {
    "environment": _environment,
    "rates": _rates,
    "correctness": _correctness,
    "steps": _steps,
    "resume": _resume,
    "compile": _compile,
    "speed": _speed,
    "waits": _waits,
    "draws": _draws,
    "shards": _shards,
    "loader alone": _loader,
    "loader to step": _loader,
}
_TITLES = {
    "environment": "Machine",
    "rates": "Rates",
    "correctness": "Against fp32 on the CPU (largest relative error of a term, of a gradient)",
    "steps": "In bf16",
    "resume": "Interrupted and resumed",
    "compile": "Compiling ahead, several at a time",
    "speed": "A training step in bf16",
    "waits": "The training loop, batches in memory",
    "draws": "Random numbers",
    "shards": "Photos",
    "loader alone": "The loader",
    "loader to step": "Loader to MAE-B",
}
