"""What the cluster tests do around the launcher: set things up, look, and act as a service account.

Through kubectl, so that the launcher's own client is not its only witness.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from percmae.jobs.names import Object

ROOT = Path(__file__).parents[2]
TOY = os.environ.get("PERCMAE_TEST_TOY_IMAGE", "percmae-toy:1")


@dataclass
class Kube:
    """One namespace of the cluster under test, as its administrator."""

    namespace: str

    def __call__(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl there and return what it prints."""
        done = self.kubectl(*arguments, stdin=stdin)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def kubectl(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl there; how it ended, and all that it said."""
        return subprocess.run(
            ["kubectl", "-n", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def apply(self, *objects: Object, options: tuple[str, ...] = ()) -> list[str]:
        """Create or update objects; what kubectl says of each.

        The server takes every field, and has nothing to say against one (such as deprecated).
        """
        return self._strictly("apply", *options, objects=objects)

    def dry_run(self, *objects: Object) -> list[str]:
        """What apply would do, all but keeping it: defaults, webhooks and admission included."""
        return self._strictly("create", "--dry-run=server", objects=objects)

    def _strictly(self, *arguments: str, objects: tuple[Object, ...]) -> list[str]:
        text = yaml.dump_all(objects, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
        done = self.kubectl(*arguments, "--validate=strict", "-f", "-", stdin=text)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    def get(self, kind: str, name: str = "", selector: str = "") -> Any:
        """One object (None when there is none), or a list."""
        names = [name] if name else []
        labels = ["-l", selector] if selector else []
        text = self("get", kind, *names, *labels, "-o", "json", "--ignore-not-found")
        found = json.loads(text) if text.strip() else None
        return found if name else (found or {"items": []})["items"]

    def pods(self, job: str) -> list[Object]:
        """The pods of a job that are there, those being removed included."""
        return list(self.get("pods", selector=f"app.kubernetes.io/instance={job}"))

    @contextmanager
    def history(self, job: str, file: Path) -> Iterator[Callable[[], list[Object]]]:
        """Every state of a job's pods from now on, also of those that are removed at once.

        file: where kubectl puts them.
        """
        selector = ["-l", f"app.kubernetes.io/instance={job}"]
        command = ["kubectl", "-n", self.namespace, "get", "pods", *selector, "-o", "json", "-w"]

        def states() -> list[Object]:
            text, decoder, found = file.read_text(), json.JSONDecoder(), []
            while text := text.lstrip():
                try:
                    state, end = decoder.raw_decode(text)
                except json.JSONDecodeError:  # of the last there is a part
                    break
                found.append(state)
                text = text[end:]
            return found

        with file.open("w") as output, subprocess.Popen(command, stdout=output) as watching:
            try:
                yield states
            finally:
                watching.terminate()

    def let_go(self, pod: str) -> None:
        """Have a toy end that was told to hold, once its container runs.

        It may end before the command's own answer has come. Of a job's pods let the master go last:
        with it the job has succeeded, and the operator removes the others.
        """
        touch = ("exec", pod, "--", "touch", "/tmp/go")
        kind, _, name = pod.rpartition("/")  # a pod's name, or job/<name>

        def ended() -> bool:
            found = self.pods(name) if kind else [self.get("pods", name)]
            phases = [each["status"].get("phase") for each in found if each is not None]
            return bool(phases) and set(phases) <= {"Succeeded", "Failed"}

        wait(
            lambda: self.kubectl(*touch).returncode == 0 or ended(),
            300,
            lambda: self("get", "pods"),
        )

    def kubeconfig(self, account: str, folder: Path, server: str | None = None) -> Path:
        """A kubeconfig that acts as a service account, perhaps through another address."""
        token = self("create", "token", account, "--duration=2h").strip()
        view = json.loads(self("config", "view", "--minify", "--raw", "-o", "json"))
        cluster = dict(view["clusters"][0]["cluster"])
        if server is not None:
            cluster["tls-server-name"] = cluster["server"].split("//")[1].split(":")[0]
            cluster["server"] = server
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "c",
                    "context": {"cluster": "c", "user": "u", "namespace": self.namespace},
                }
            ],
            "current-context": "c",
        }
        path = folder / f"{account}.kubeconfig"
        path.write_text(json.dumps(config))
        return path


@dataclass
class Launcher:
    """A ``percmae submit pretrain`` under way, and what it says."""

    process: subprocess.Popen[str]
    output: Path
    name: str
    _seen: dict[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """Everything so far."""
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 180) -> None:
        """Until it has said ``text``."""
        wait(
            lambda: text in self.said or self.process.poll() is not None, seconds, lambda: self.said
        )
        assert text in self.said, self.said

    def end(self, seconds: float = 300) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running; said {self.said}") from None


def toy_settings(toy: str) -> list[str]:
    """Settings of a job whose pods do what ``toy`` says (tests/cluster/toy/behave.py)."""
    small = ["gpus=0", "cpu=50m", "memory=96Mi", "shm=16Mi", "scratch=32Mi", "grace=5"]
    return [f"image={TOY}", *small, f"env={json.dumps([{'name': 'TOY', 'value': toy}])}"]


def submit(
    kubeconfig: Path,
    folder: Path,
    tag: str,
    toy: str,
    *job: str,
    options: tuple[str, ...] = (),
) -> Launcher:
    """Start a launcher whose pods do what ``toy`` says."""
    command = [sys.executable, "-m", "percmae", "submit"]
    for setting in [*toy_settings(toy), *job]:
        command += ["--job", setting]
    work = ["pretrain", "--data", "s3://none/manifest.json", "--to", "s3://none/runs"]
    work += ["--tag", tag, "--recipe", "demo"]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    name = subprocess.run(
        [*command, "--print", *work], capture_output=True, text=True, check=True, env=environment
    ).stdout
    output = folder / f"{tag}-{time.monotonic_ns()}.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [*command, *options, *work], stdout=log, stderr=log, text=True, env=environment
        )
    return Launcher(process, output, yaml.safe_load(name)["metadata"]["name"])


def wait(
    done: Callable[[], object], seconds: float = 180, what: Callable[[], object] = lambda: ""
) -> None:
    """Until ``done()`` holds; fails with ``what()`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.3)


def gone(kube: Kube, launcher: Launcher, seconds: float = 300) -> None:
    """Until neither the job nor a pod of it is left.

    The garbage collector of a cluster that has just got the job's kind learns of it within half a
    minute, and only then removes what a job owns.
    """
    wait(
        lambda: not kube.pods(launcher.name) and kube.get("pytorchjob", launcher.name) is None,
        seconds,
        lambda: [pod["metadata"]["name"] for pod in kube.pods(launcher.name)],
    )


def lines_of(said: str) -> list[int]:
    """Numbers of the toy's lines, in the order they were shown."""
    return [int(n) for n in re.findall(r"^toy: line (\d+)$", said, re.M)]
