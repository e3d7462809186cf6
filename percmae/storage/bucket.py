"""A bucket made ready, and tried out. What ``k8s/base/bucket`` and ``percmae doctor`` run in a pod.

    python -m percmae.storage.bucket setup s3://percmae   (again: changes nothing)
    python -m percmae.storage.bucket check s3://percmae   (writes, reads and deletes one object)

Store and keys come from the environment as everywhere (``StoreSettings.load``).
"""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import NoReturn

from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from percmae.command import exit_code
from percmae.errors import StoreError, UserError
from percmae.storage.clients import client
from percmae.storage.path import StorePath
from percmae.storage.s3 import S3Object
from percmae.storage.settings import StoreSettings

UNFINISHED_DAYS = 7
RULE = "percmae-unfinished-uploads"
# How stores without such rules refuse one. MinIO is among them: it removes unfinished uploads by
# its own setting (MINIO_API_STALE_UPLOADS_EXPIRY), and takes a rule for malformed, or drops it.
_NO_SUCH_RULES = {"MalformedXML", "NotImplemented", "InvalidRequest", "InvalidArgument"}


def setup_bucket(uri: str) -> bool:
    """Make the bucket of ``uri`` where it is absent, and have unfinished uploads removed.

    Other lifecycle rules of the bucket stay; where ``uri`` is but a part of it (as a profile of
    Kubeflow has), so do all. Returns whether the store keeps the rule; some have none and clear up
    in their own way. Raises StoreError, or StoreAccessError where trying again will not help.
    """
    bucket = _bucket(uri)
    whole = StorePath(f"s3://{bucket.bucket}")
    whole.prepare()
    if StorePath(uri) != whole:
        return False
    try:
        with bucket.errors("set the lifecycle of"):
            return _set_rule(bucket)
    except StoreError as error:
        if isinstance(error.__cause__, S3Error) and error.__cause__.code in _NO_SUCH_RULES:
            return False
        raise


def check_bucket(uri: str) -> None:
    """Write, read and delete one small object below ``uri``.

    Raises StoreAccessError for an absent bucket or what the keys may not do, StoreError for a
    store that does not answer or answers wrongly.
    """
    _bucket(uri)
    probe = StorePath(uri) / f".percmae-check/{secrets.token_hex(8)}"
    text = secrets.token_hex(16)
    probe.write_text(text)
    try:
        if probe.read_text() != text:
            raise StoreError(f"{probe}: the store gave back something other than was written")
    finally:
        probe.delete()


def _bucket(uri: str) -> S3Object:
    path = StorePath(uri)
    if not path.is_s3:
        raise UserError(f"{uri!r} is not in a store; give s3://bucket")
    return S3Object(path._bucket, "", StoreSettings.load())


def _set_rule(bucket: S3Object) -> bool:
    store = client(bucket.settings)
    rules = _rules(bucket)
    if not any(_is_ours(rule) for rule in rules):
        ours = Rule(
            ENABLED,
            rule_id=RULE,
            rule_filter=Filter(prefix=""),
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(UNFINISHED_DAYS),
        )
        kept = [rule for rule in rules if rule.rule_id != RULE]
        store.set_bucket_lifecycle(bucket.bucket, LifecycleConfig([*kept, ours]))
    # What was acknowledged is not always what is kept.
    return any(_is_ours(rule) for rule in _rules(bucket))


def _rules(bucket: S3Object) -> list[Rule]:
    found = client(bucket.settings).get_bucket_lifecycle(bucket.bucket)
    return list(found.rules) if found is not None else []


def _is_ours(rule: Rule) -> bool:
    aborts = rule.abort_incomplete_multipart_upload
    days = aborts.days_after_initiation if aborts is not None else None
    return rule.rule_id == RULE and rule.status == ENABLED and days == UNFINISHED_DAYS


def _work(args: argparse.Namespace) -> None:
    if args.action == "check":
        check_bucket(args.uri)
        print(f"{args.uri}: written, read and deleted")
        return
    kept = setup_bucket(args.uri)
    cleared = (
        f"unfinished uploads are removed after {UNFINISHED_DAYS} days"
        if kept
        else "the store keeps no rule for unfinished uploads: see that it removes them by itself"
    )
    print(f"{args.uri}: is there; {cleared}")


def main() -> NoReturn:
    """The command; exit codes as of ``percmae``."""
    parser = argparse.ArgumentParser(prog="python -m percmae.storage.bucket", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["setup", "check"])
    parser.add_argument("uri", metavar="s3://BUCKET")
    sys.exit(exit_code(lambda: _work(parser.parse_args())))


if __name__ == "__main__":
    main()
