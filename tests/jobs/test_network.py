"""The network policies of the overlays: what our pods reach, who reaches them, whom they spare."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jobs.validation import validate
from percmae.cli.submit import VERBS
from percmae.jobs.manifests import FOLDERS

from .kustomized import K8S, KUBECTLS, OVERLAYS, build, committed, of_kind, pod_labels, selects


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_pods_reach_names_and_the_store_and_nobody_reaches_them(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    policies = of_kind(objects, "NetworkPolicy")
    jobs = [job for place in FOLDERS for job in committed(place).values()]
    stages = set(VERBS) | {"reconstruct"}
    found = list(pod_labels([*objects, *jobs]))
    found += [{**found[-1], "app.kubernetes.io/component": stage} for stage in stages]
    ports = of_kind(objects, "ConfigMap")["percmae-store"]
    address = urlsplit(ports["data"]["AWS_ENDPOINT_URL"])
    wanted = {("UDP", 53), ("TCP", 53), ("UDP", 5353), ("TCP", 5353), ("TCP", 443)}
    wanted |= {("TCP", address.port or 443)}
    if noted := ports["metadata"].get("annotations", {}).get("percmae.dev/port"):
        wanted.add(("TCP", int(noted)))
    for labels in found:
        takes = [p["spec"] for p in policies.values() if selects(p["spec"]["podSelector"], labels)]
        assert any("Ingress" in spec["policyTypes"] for spec in takes), labels
        sources = [
            source for spec in takes for rule in spec.get("ingress", []) for source in rule["from"]
        ]
        part = labels["app.kubernetes.io/component"]
        if part == "tensorboard":
            assert sources == [], "by port-forward only"
        for source in sources:  # our own pods, of this namespace
            assert source.keys() == {"podSelector"}
            assert not selects(source["podSelector"], {"app": "ml-pipeline"})
        if part == "store":
            assert [spec.get("egress") for spec in takes if "Egress" in spec["policyTypes"]] == [
                None
            ]
            continue
        open_ports = {
            (port["protocol"], port["port"])
            for spec in takes
            for rule in spec.get("egress", [])
            for port in rule.get("ports", [])
        }
        assert open_ports >= wanted, (labels, wanted - open_ports)


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_policies_leave_pods_of_others_alone(overlay: str) -> None:
    policies = of_kind(build(overlay, KUBECTLS[0]), "NetworkPolicy")
    assert {"percmae-deny-ingress", "percmae-names-and-https"} <= policies.keys()
    for policy in policies.values():
        assert not selects(policy["spec"]["podSelector"], {"app": "ml-pipeline"})
        assert not selects(policy["spec"]["podSelector"], {})


def test_the_ports_of_a_store_elsewhere_are_a_setting(tmp_path: Path) -> None:
    for name in ("components", "base", "overlays"):
        shutil.copytree(K8S / name, tmp_path / name, ignore=shutil.ignore_patterns("jobs"))
    file = tmp_path / "components/store-elsewhere/s3/store.yaml"
    text = file.read_text()
    assert text.count('percmae.dev/port: "443"') == 1
    file.write_text(text.replace('percmae.dev/port: "443"', 'percmae.dev/port: "8443"'))
    objects = build(str(tmp_path / "overlays/external-s3"), KUBECTLS[0])
    policy = of_kind(objects, "NetworkPolicy")["percmae-reach-the-store"]
    validate(policy)
    assert {"protocol": "TCP", "port": 8443} in policy["spec"]["egress"][0]["ports"]
