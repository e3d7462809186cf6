"""Starts the tasks, keeps their limits, collects their results and prints the table."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# In place of this folder, whose modules go by plain names.
sys.path[:1] = [str(HERE.parent), str(ROOT)]

from gpu_check.settings import LIMIT, SLOWER, Group, Task, groups  # noqa: E402
from gpu_check.table import row_line, table  # noqa: E402

FORMAT = "percmae-gpu-check/1"
# Modules that carry out a part; the others are in one of the same name.
MODULES = {"compile": "speed", "shards": "loading"}


def main() -> int:
    options = _options()
    if options.part is not None:
        return _carry_out(options)
    out = Path(options.out).resolve()
    for folder in ("rows", "logs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).iterdir():
            old.unlink()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        deadline = began + (options.limit or LIMIT * (SLOWER if options.tiny else 1))
        parent = Parent(out, Path(scratch), options.tiny, deadline, options.wheels)
        for group in groups(options.tiny):
            parent.carry_out(group)
    document = {
        "format": FORMAT,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "tiny": options.tiny,
        "seconds": round(time.monotonic() - began, 1),
        "tasks": parent.tasks,
        "rows": parent.rows,
    }
    (out / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n")
    text = table(document)
    (out / "gpu_check.txt").write_text(text + "\n")
    print("\n" + text, flush=True)
    failed = [t for t in parent.tasks if t["status"] != "ok"]
    return 1 if failed or any(row.get("missed") for row in parent.rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Is the code right and fast on this GPU?")
    parser.add_argument("--out", default="build/gpu-check", help="folder for JSON, table and logs")
    parser.add_argument("--wheels", help="folder of packages that this Python lacks")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--limit", type=float, help="seconds for everything")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    return parser.parse_args()


def _carry_out(options: argparse.Namespace) -> int:
    """Tasks of one part, in this process."""
    from gpu_check.check import Check

    part, out, scratch = options.part, Path(options.out), Path(options.scratch)
    module = importlib.import_module(f"gpu_check.{MODULES.get(part, part)}")
    run = getattr(module, part if part in MODULES else "run")
    for name in options.names:
        run(Check(name, _rows(out, part, name), scratch, options.tiny))
    return 0


def _rows(out: Path, part: str, name: str) -> Path:
    return out / "rows" / f"{part}-{_plain(name)}.jsonl"


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


class Parent:
    """Runs groups of tasks and collects what they have found."""

    def __init__(
        self, out: Path, scratch: Path, tiny: bool, deadline: float, wheels: str | None
    ) -> None:
        self.out, self.scratch, self.tiny, self.deadline = out, scratch, tiny, deadline
        self.tasks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.packages = [str(ROOT), str(HERE.parent)]
        if wheels:
            self.packages.append(str(self._unpacked(wheels)))

    def _unpacked(self, wheels: str) -> Path:
        files = sorted(str(file) for file in Path(wheels).glob("*.whl"))
        if not files:
            raise SystemExit(f"{wheels}: holds no wheels; fill it with make gpu-wheels")
        target = self.scratch / "packages"
        quiet = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *files], check=True)
        return target

    def carry_out(self, group: Group) -> None:
        """All tasks of a group; those that the limit does not reach are named as such."""
        print(f"== {group.title}", flush=True)
        until = min(time.monotonic() + group.limit, self.deadline)
        threads = max(1, (os.cpu_count() or 1) // group.parallel)
        with ThreadPoolExecutor(group.parallel) as pool:
            for tasks in group.processes:
                pool.submit(self._tasks, tasks, until, threads)

    def _tasks(self, tasks: list[Task], until: float, threads: int) -> None:
        """Those of one process: how it ended is said of each of them."""
        began = time.monotonic()
        try:
            status = self._process(tasks, until, threads)
        except Exception as error:
            status = f"could not be started: {error}"
        seconds = round(time.monotonic() - began, 1)
        for task in tasks:
            file = _rows(self.out, *task)
            rows = [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []
            self.rows += rows
            self.tasks.append({**task._asdict(), "status": status, "seconds": seconds})
            lines = "".join(f"\n     {row_line(row)}" for row in rows)
            print(f"   {task.part} {task.name}: {status}, {seconds:.0f} s{lines}", flush=True)

    def _process(self, tasks: list[Task], until: float, threads: int) -> str:
        """Run tasks in a process; ``ok``, or why it has not ended well."""
        left = until - time.monotonic()
        if left < 3:
            return "not reached in time"
        part, first = tasks[0]
        log = self.out / "logs" / f"{part}-{_plain(first)}.log"
        command = [sys.executable, str(HERE), "--out", str(self.out)]
        command += ["--scratch", str(self.scratch), *(["--tiny"] if self.tiny else [])]
        command += ["--part", part, "--names", *(task.name for task in tasks)]
        with log.open("w") as output:
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment(threads),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(left)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                # Its workers too, however it has ended.
                _end(child)
        if code == 0:
            return "ok"
        if code is None:
            return f"not done within {left:.0f} s"
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"failed (code {code}): {said[-1][:300] if said else 'said nothing'}"

    def _environment(self, threads: int) -> dict[str, str]:
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(self.packages),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(4, threads)),
            # Without it matrix products may differ from one time to the next.
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            **{name: str(self.scratch / folder) for name, folder in caches.items()},
        }


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main())
