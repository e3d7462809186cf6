"""Where this process stands among the processes of a job, as its environment says.

Either torchrun's variables say it (which a training operator or a script of one's own may set as
well), or those of SLURM's srun, which stand for them where they are missing:

============  ============================================================
RANK          SLURM_PROCID
WORLD_SIZE    SLURM_STEP_NUM_TASKS, else SLURM_NTASKS
LOCAL_RANK    SLURM_LOCALID
MASTER_ADDR   on one node 127.0.0.1, else the first of SLURM_STEP_NODELIST
MASTER_PORT   15000 to 29999, made of SLURM_JOB_ID and SLURM_STEP_ID
============  ============================================================

Only a step of srun's counts: a batch script and the shell of ``salloc`` have most of these
variables too, and are one process however many tasks the job may start. Nothing here needs torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from percmae.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""torchrun's. The last two may be missing together: one process a machine."""
_NODES = "SLURM_STEP_NUM_NODES"
_MOST, _HIGHEST_PORT = 1_000_000, 65_535
_PORTS = range(15_000, 30_000)  # below those that the system gives to clients
# (rank, number of processes, who sets them); none of them says where the processes could meet.
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "mpirun (MVAPICH)"),
    ("PMI_RANK", "PMI_SIZE", "mpirun (MPICH, Intel MPI)"),
)
_HOW = (
    "start the processes by torchrun (python -m percmae.engine.torchrun --nproc-per-node=2 -- "
    "pretrain …) or, under SLURM, by srun"
)


@dataclass(frozen=True)
class Place:
    """One process among ``size``.

    rank: its number; local_rank: its number on its machine; nodes: machines of the job; address,
    port: where process 0 listens for the others; slurm: whether srun has started it.
    """

    rank: int
    size: int
    local_rank: int
    nodes: int
    address: str
    port: int
    slurm: bool


def find_place(environ: Mapping[str, str] | None = None) -> Place | None:
    """This process's place in a job; None where it is alone.

    Raises UserError for half of the variables, for values that make no sense together, and for
    processes that MPI has started, which cannot find each other.
    """
    env = os.environ if environ is None else environ
    given = {name: env[name] for name in VARIABLES if env.get(name)}
    if "RANK" not in given:
        _refuse_mpi(env)
    step = _slurm_step(env)
    # A single task needs no place to meet, even if a script names one.
    if step.get("WORLD_SIZE") == "1" and given.keys() <= {"MASTER_ADDR", "MASTER_PORT"}:
        return None
    return _checked(step | given, "RANK" not in given) if step or given else None


def copies(environ: Mapping[str, str] | None = None) -> int:
    """How many processes have been started with this one, as far as the environment says it."""
    env = os.environ if environ is None else environ
    said = [env.get(size, "") for _, size, _ in _MPI] + [env.get("WORLD_SIZE", "")]
    said.append(_slurm_step(env).get("WORLD_SIZE", ""))
    return max(int(text) if text.isdecimal() else 1 for text in said)


def unused_tasks(environ: Mapping[str, str] | None = None) -> int:
    """How many tasks a SLURM job has where this one process is outside srun; else 0."""
    env = os.environ if environ is None else environ
    text = env.get("SLURM_NTASKS", "")
    alone = not _slurm_step(env) and not env.get("RANK") and text.isdecimal()
    return int(text) if alone and int(text) > 1 else 0


def _checked(values: Mapping[str, str], slurm: bool) -> Place:
    missing = [name for name in VARIABLES[:4] if name not in values]
    if missing:
        raise UserError(
            f"{_listed(values)}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
            f" not set, and they belong together: {_HOW}, or unset {' '.join(values)} to train in "
            "one process"
        )
    size = _number(values, "WORLD_SIZE", 1, _MOST)
    rank = _number(values, "RANK", 0, size - 1, f" (WORLD_SIZE={size})")
    local_rank, nodes = 0, size
    if "LOCAL_WORLD_SIZE" in values or ("LOCAL_RANK" in values and _NODES not in values):
        if not ("LOCAL_RANK" in values and "LOCAL_WORLD_SIZE" in values):
            raise UserError(
                "LOCAL_RANK and LOCAL_WORLD_SIZE belong together, and only one of them is set: "
                f"{_HOW}; without both there is one process on each machine"
            )
        local_size = _number(values, "LOCAL_WORLD_SIZE", 1, size, f" (WORLD_SIZE={size})")
        why = f" (LOCAL_WORLD_SIZE={local_size})"
        local_rank = _number(values, "LOCAL_RANK", 0, local_size - 1, why)
        nodes = size // local_size
    elif _NODES in values:
        local_rank = _number({"LOCAL_RANK": "0", **values}, "LOCAL_RANK", 0, size - 1)
        nodes = _number(values, _NODES, 1, size)
    port = _number(values, "MASTER_PORT", 1, _HIGHEST_PORT)
    return Place(rank, size, local_rank, nodes, values["MASTER_ADDR"].strip(), port, slurm)


def _number(values: Mapping[str, str], name: str, least: int, most: int, why: str = "") -> int:
    text = values[name].strip()
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise UserError(
            f"{name}={text}: expected a whole number from {least} to {most}{why}; {_HOW}"
        )
    return int(text)


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={values[name]}" for name in values)


def _refuse_mpi(env: Mapping[str, str]) -> None:
    for rank, size, by in _MPI:
        # srun says the same to programs that use MPI; then it is srun that counts.
        by_srun = env.get("SLURM_PROCID") == env.get(rank)
        if env.get(size, "1") != "1" and not (rank == "PMI_RANK" and by_srun):
            raise UserError(
                f"{size}={env[size]}: {by} has started several copies, which would train "
                f"separately and overwrite each other: {_HOW}"
            )


def _slurm_step(env: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of a step of srun's, and the nodes; nothing outside one."""
    rank = env.get("SLURM_PROCID", "")
    # Only in a step is there a task other than the first.
    if rank in ("", "0") and not any(name.startswith("SLURM_STEP") for name in env):
        return {}

    def first(*names: str) -> str:
        return next((env[name] for name in names if env.get(name)), "")

    nodes = first(_NODES, "SLURM_NNODES", "SLURM_JOB_NUM_NODES") or "1"
    size = first("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    found = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": first("SLURM_LOCALID"),
        "MASTER_ADDR": "127.0.0.1"
        if nodes == "1"
        else first_host(first("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")),
        "MASTER_PORT": _port(
            first("SLURM_JOB_ID", "SLURM_JOBID"), first("SLURM_STEP_ID", "SLURM_STEPID") or "0"
        ),
        _NODES: nodes,
    }
    return {name: value for name, value in found.items() if value}


def _port(job: str, step: str) -> str:
    """The same for all tasks of a step; another for the next step and the next job."""
    if not (job.isdecimal() and step.isdecimal()):
        return ""
    return str(_PORTS[(int(job) + 1009 * int(step)) % len(_PORTS)])


def first_host(nodelist: str) -> str:
    """The first host of SLURM's short form: ``gpu[07-09,12],login`` is gpu07."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""
