"""Making a bucket ready and trying it out, against the session's S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from s3_server import S3

from percmae.errors import StoreAccessError, UserError
from percmae.storage import StorePath, StoreSettings, bucket
from percmae.storage.clients import client

NEW = "percmae-made-by-setup"


def rules(name: str) -> dict[str, Rule]:
    found = client(StoreSettings.load()).get_bucket_lifecycle(name)
    return {rule.rule_id: rule for rule in found.rules} if found else {}


@pytest.fixture
def new_bucket(s3: S3) -> str:
    store = client(s3.settings)
    if store.bucket_exists(NEW):
        store.delete_bucket_lifecycle(NEW)
        store.remove_bucket(NEW)
    return f"s3://{NEW}"


def test_makes_the_bucket_and_the_rule_and_again_changes_nothing(s3: S3, new_bucket: str) -> None:
    kept = bucket.setup_bucket(new_bucket)
    assert client(StoreSettings.load()).bucket_exists(NEW)
    first = rules(NEW)
    assert kept == (bucket.RULE in first) == s3.keeps_rules_for_uploads
    if not kept:  # MinIO removes them by a setting of its own
        assert bucket.setup_bucket(new_bucket) is False
        return
    assert first[bucket.RULE].abort_incomplete_multipart_upload.days_after_initiation == 7
    assert bucket.setup_bucket(new_bucket) is True
    assert len(rules(NEW)) == 1


def test_of_a_part_of_a_bucket_nothing_else_is_touched(s3: S3, new_bucket: str) -> None:
    """As a profile of Kubeflow has it, whose keys open no more."""
    client(StoreSettings.load()).make_bucket(NEW)
    part = f"{new_bucket}/private-artifacts/me/percmae"
    assert bucket.setup_bucket(part) is False
    assert rules(NEW) == {}
    written: list[str] = []
    create = StorePath.write_text

    def write_text(self: StorePath, text: str) -> None:
        written.append(self.uri)
        create(self, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorePath, "write_text", write_text)
        bucket.check_bucket(part)
    assert [uri.startswith(f"{part}/.percmae-check/") for uri in written] == [True]
    assert list(StorePath(new_bucket).iter()) == []


def test_other_rules_and_objects_stay(s3: S3, new_bucket: str) -> None:
    store = client(StoreSettings.load())
    store.make_bucket(NEW)
    (StorePath(new_bucket) / "kept").write_text("x")
    mine = Rule(
        ENABLED, rule_id="mine", rule_filter=Filter(prefix="tmp/"), expiration=Expiration(days=3)
    )
    store.set_bucket_lifecycle(NEW, LifecycleConfig([mine]))
    assert bucket.setup_bucket(new_bucket) is s3.keeps_rules_for_uploads
    ours = {bucket.RULE} if s3.keeps_rules_for_uploads else set()
    assert set(rules(NEW)) == {"mine"} | ours
    assert rules(NEW)["mine"].expiration.days == 3
    assert (StorePath(new_bucket) / "kept").read_text() == "x"
    (StorePath(new_bucket) / "kept").delete()


def refusal(code: str) -> S3Error:
    response = SimpleNamespace(data=b"<Error/>", status=400)
    return S3Error(response, code, "no", "", "", "", NEW, "")  # type: ignore[arg-type]


def test_a_store_without_such_rules_is_told_not_failed(
    new_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, *args: object) -> None:
        raise refusal("MalformedXML")

    monkeypatch.setattr("minio.Minio.set_bucket_lifecycle", refuse)
    assert bucket.setup_bucket(new_bucket) is False
    assert client(StoreSettings.load()).bucket_exists(NEW)


def test_a_store_that_drops_the_rule_is_told(
    new_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minio.Minio.set_bucket_lifecycle", lambda self, *args: None)
    assert bucket.setup_bucket(new_bucket) is False


def test_other_refusals_are_errors(new_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *args: object) -> None:
        raise refusal("AccessDenied")

    monkeypatch.setattr("minio.Minio.set_bucket_lifecycle", refuse)
    with pytest.raises(StoreAccessError, match="set the lifecycle of"):
        bucket.setup_bucket(new_bucket)


def test_check_leaves_nothing(s3: S3) -> None:
    before = {entry.name for entry in StorePath(f"s3://{s3.bucket}").iter()}
    bucket.check_bucket(f"s3://{s3.bucket}")
    assert {entry.name for entry in StorePath(f"s3://{s3.bucket}").iter()} == before


def test_check_names_an_absent_bucket(s3: S3) -> None:
    with pytest.raises(StoreAccessError, match=r"percmae-no-such-bucket.*does not exist"):
        bucket.check_bucket("s3://percmae-no-such-bucket")


def test_a_folder_is_no_bucket(tmp_path: object) -> None:
    with pytest.raises(UserError, match="not in a store"):
        bucket.setup_bucket(str(tmp_path))


def test_the_command(s3: S3) -> None:
    command = [sys.executable, "-m", "percmae.storage.bucket"]
    good = subprocess.run(
        [*command, "check", f"s3://{s3.bucket}"], capture_output=True, text=True, check=False
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert "written, read and deleted" in good.stdout
    bad = subprocess.run(
        [*command, "check", "s3://percmae-no-such-bucket"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("percmae: error: ")
    assert len(bad.stderr.splitlines()) == 1


def test_needs_no_torch() -> None:
    code = (
        "import sys, json; import percmae.storage.bucket, percmae.storage.follow; "
        "print(json.dumps([m for m in ('torch', 'kfp', 'kubernetes') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(found.stdout) == []
