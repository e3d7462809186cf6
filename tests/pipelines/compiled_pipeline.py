"""The pipeline as it is compiled, and how to find one's way in it."""

from __future__ import annotations

from typing import Any

from components.check.component import check
from components.clean.component import clean
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.ingest.component import ingest
from components.judge.component import judge
from components.look.component import look
from components.pretrain.component import pretrain
from components.probe.component import probe
from components.reconstruct.component import reconstruct
from components.report.component import report

COMPONENTS = {
    "check": check,
    "ingest": ingest,
    "pretrain": pretrain,
    "finetune": finetune,
    "probe": probe,
    "evaluate": evaluate,
    "reconstruct": reconstruct,
    "report": report,
    "clean": clean,
}
RETRAINING = {
    "check": check,
    "look": look,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "judge": judge,
    "clean": clean,
}
SEEDS = "exit-handler-1/for-loop-2"
PINNED = "registry.example/percmae@sha256:" + "0" * 64


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = spec["deploymentSpec"]["executors"]
    return {name: value["container"] for name, value in executors.items()}


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of the DAG and of the DAGs in it, by path."""

    def walk(component: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
        found = {}
        for name, task in component["dag"]["tasks"].items():
            inner = spec["components"][task["componentRef"]["name"]]
            found[path + name] = task
            if "dag" in inner:
                found |= walk(inner, f"{path}{name}/")
        return found

    return walk(spec["root"], "")
