"""Works and settings that several tests of jobs use."""

from __future__ import annotations

from typing import Any

from percmae.config import load_config
from percmae.config.naming import Features
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings
from percmae.jobs.work import Work, command, training

DATA = "s3://percmae/datasets/imagenet/manifest.json"
RUNS = "s3://percmae/runs/seed-0"
KINDS = ("pytorchjob", "trainjob", "job")
VARIANTS = ("mae", "ssim", "perceptual", "ls_gan", "msg_gan", "stylegan2_ada")
RECIPES = ("demo", "mae", "reference")
SIZES = ("tiny", "small", "base", "large", "huge")
# A batch that 128 processes can share, and three.
FITTING = ("data.batch_size=8", "optim.total_batch=49152")


def pretraining(*overrides: str, variant: str = "mae", **options: Any) -> Work:
    """A pretraining of the variant."""
    chosen = (*FITTING, *overrides)
    config = load_config(variant, "mae", overrides=chosen, tag="t", **options)
    return training(config, DATA, RUNS)


def probing(*overrides: str, stage: str = "probe", features: Features = "pretrained") -> Work:
    """A probe or fine-tuning of a run with the presets' own settings."""
    base = load_config("mae", "mae", stage, tag="t")
    config = load_config("mae", "mae", stage, overrides=(*FITTING, *overrides), tag="t")
    return training(config, DATA, RUNS, f"{RUNS}/t_mae", features, base)


def every_work() -> dict[str, Work]:
    """One work of each stage, and a pretraining of each variant."""
    works = {f"pretrain-{variant}": pretraining(variant=variant) for variant in VARIANTS}
    return works | {
        "probe": probing(),
        "control": probing(features="untrained"),
        "finetune": probing(stage="finetune"),
        "ingest": command("ingest", "imagenet", "--to", "s3://percmae/datasets/imagenet"),
        "evaluate": command("evaluate", "t_mae", "--run", f"{RUNS}/t_mae", "--data", DATA),
        "report": command("report", "t", "--runs", f"{RUNS}/t_mae", "--to", "s3://percmae/r"),
    }


def every_setting(kind: str) -> dict[str, JobSettings]:
    """Settings of a kind, one for each thing that changes the shape of its objects."""
    chosen: dict[str, dict[str, Any]] = {
        "plain": {},
        "cpu": {"gpus": 0},
        "eight GPUs": {"gpus": 8, "cpu": "64", "memory": "512Gi", "shm": "64Gi"},
        "another vendor": {"gpu_resource": "amd.com/gpu"},
        "GPU type": {"gpu_type": "NVIDIA-H100-80GB-HBM3", "node_selector": {"pool": "train"}},
        "kueue": {"queue": "team-a"},
        "fabric": {"resources": {"rdma/ib": "1", "hugepages-2Mi": "1Gi"}},
        ROOT: {"capabilities": ["IPC_LOCK"], "run_as_user": 0},
        "any user": {"run_as_user": None},
        "no limits": {"deadline": None, "cpu_limit": None},
        "limits": {"deadline": 3600, "cpu_limit": "8", "grace": 30},
        "digest": {
            "image": "registry.example.com:5000/percmae/train@sha256:" + "0" * 64,
            "image_pull_secrets": ["registry", "mirror"],
        },
        "store": {"store_config": "minio", "store_secret": "mlpipeline-minio-artifact"},
        "namespace": {"namespace": "kubeflow-user-example-com"},
        "env": {
            "env": [
                {"name": "NCCL_DEBUG", "value": "WARN"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {
                    "name": "AWS_SESSION_TOKEN",
                    "valueFrom": {"secretKeyRef": {"name": "session", "key": "token"}},
                },
                {"name": "AWS_REGION", "value": "eu-central-1"},
            ]
        },
        "volumes": {
            "volumes": [
                {"name": "cache", "persistentVolumeClaim": {"claimName": "torch-cache"}},
                {"name": "ca", "configMap": {"name": "ca", "items": [{"key": "k", "path": "p"}]}},
            ],
            "volume_mounts": [
                {"name": "cache", "mountPath": "/cache"},
                {"name": "ca", "mountPath": "/tmp/ca", "readOnly": True},
            ],
        },
        "placement": {
            "tolerations": [
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"operator": "Exists"},
                {"key": "spot", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 30},
            ],
            "affinity": AFFINITY,
        },
        "labels": {
            "labels": {"example.com/team": "vision", "cost": ""},
            "annotations": {"example.com/note": "anything at all: ü, “quotes”, {}"},
        },
    }
    if kind != "trainjob":
        chosen |= {
            "priority": {"priority_class": "batch-low"},
            "for good": {"ttl": None, "clean_pods": "None", "backoff_limit": 0},
            "pull": {"image_pull_policy": "Always"},
            "spread": {"topology_spread": [SPREAD]},
        }
    if kind != "job":
        chosen["nodes"] = {"nodes": 16, "gpus": 8}
    if kind == "pytorchjob":
        chosen |= {
            "elastic": {"nodes": 4, "min_nodes": 2, "max_restarts": 10},
            "volcano": {"nodes": 4, "volcano_queue": "gpu", "priority_class": "high"},
            "elastic volcano": {"nodes": 4, "min_nodes": 1, "volcano_queue": "gpu"},
        }
    return {name: job_settings(kind=kind, **values) for name, values in chosen.items()}


ROOT = "root"
"""The settings of every_setting that no namespace takes whose pods must be restricted."""
SPREAD = {
    "topologyKey": "kubernetes.io/hostname",
    "maxSkew": 1,
    "whenUnsatisfiable": "DoNotSchedule",
}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
            ]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 10,
                "preference": {
                    "matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["3"]}]
                },
            }
        ],
    },
    "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 100,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "percmae"}},
                },
            }
        ]
    },
}

OWNER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "name": "step-x7k2p",
    "uid": "0b0e3f0e-3a4e-4b0e-9d5c-1f3f8a6f2c11",
}
