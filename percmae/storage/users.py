"""A key that opens one bucket and nothing else, at a store of our own (``k8s/components/store``).

python -m percmae.storage.users minio s3://percmae
    makes the user whose keys PERCMAE_USER_ACCESS_KEY and PERCMAE_USER_SECRET_KEY are, by the
    keys that the environment has as everywhere, MinIO's root user's. Again: brings the user's
    secret key and rights up to date.
python -m percmae.storage.users seaweedfs s3://percmae FILE
    writes the configuration (-s3.config) with which SeaweedFS knows the keys of the
    environment, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and no others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from minio import MinioAdmin
from minio.credentials import StaticProvider
from minio.error import MinioAdminException

from percmae.command import exit_code
from percmae.errors import StoreAccessError, StoreError, UserError
from percmae.storage.path import StorePath
from percmae.storage.settings import StoreSettings
from percmae.storage.transport import Server, Transport

ACCESS_VARIABLE, SECRET_VARIABLE = "PERCMAE_USER_ACCESS_KEY", "PERCMAE_USER_SECRET_KEY"
_HERE = "http://127.0.0.1"  # SeaweedFS, before it starts
_OF_BUCKET = (
    "GetBucketLocation",
    "ListBucket",
    "ListBucketMultipartUploads",
    "GetLifecycleConfiguration",
    "PutLifecycleConfiguration",
)
_OF_OBJECTS = (
    "GetObject",
    "PutObject",
    "DeleteObject",
    "AbortMultipartUpload",
    "ListMultipartUploadParts",
)


def policy(bucket: str) -> dict[str, Any]:
    """What may be done with a bucket by who trains: an IAM policy. The bucket itself stays."""
    place = f"arn:aws:s3:::{bucket}"
    rights = {place: _OF_BUCKET, f"{place}/*": _OF_OBJECTS}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": [f"s3:{a}" for a in actions], "Resource": [resource]}
            for resource, actions in rights.items()
        ],
    }


def make_minio_user(uri: str, access_key: str, secret_key: str) -> None:
    """Make the bucket of ``uri`` where it is absent, and the user for it, or bring it up to date.

    The environment's keys are those of MinIO's root user. Raises UserError for keys that are the
    root user's own, StoreAccessError or StoreError for what MinIO refuses, in its words.
    """
    settings = StoreSettings.load()
    if access_key == settings.access_key:
        raise UserError(
            f"the jobs' access key is MinIO's root user's, {access_key!r}: give them another name"
        )
    bucket = _bucket(uri)
    StorePath(f"s3://{bucket}").prepare()  # which also waits for a store that still starts
    admin = MinioAdmin(
        endpoint=urlsplit(settings.endpoint).netloc,
        credentials=StaticProvider(settings.access_key, settings.secret_key),
        region=settings.region or "",
        secure=bool(settings.secure),
        http_client=Transport(Server.store(settings)),
    )
    name = f"percmae-{bucket}"
    try:
        admin.user_add(access_key, secret_key)
        admin.policy_add(name, policy=policy(bucket))
        admin.policy_set(name, user=access_key)
    except MinioAdminException as error:
        raise _explain(error, settings) from error


def seaweedfs_config(uri: str, settings: StoreSettings) -> dict[str, Any]:
    """SeaweedFS's configuration of identities: the keys of ``settings``, for the one bucket.

    Raises UserError for a ``uri`` that is not in a store.
    """
    return {
        "identities": [
            {
                "name": "percmae",
                "credentials": [
                    {"accessKey": settings.access_key, "secretKey": settings.secret_key}
                ],
                # Admin of one bucket: may make it and set its rules, and all with its objects.
                "actions": [f"Admin:{_bucket(uri)}"],
            }
        ]
    }


def _bucket(uri: str) -> str:
    path = StorePath(uri)
    if not path.is_s3:
        raise UserError(f"{uri!r} is not in a store; give s3://bucket")
    return path._bucket


def _explain(error: MinioAdminException, settings: StoreSettings) -> StoreError:
    try:
        answer = json.loads(error._body)
        said = f"{answer['Code']}: {answer['Message']}"
    except (ValueError, LookupError, TypeError):
        said = f"HTTP {error._code}"
    kind = StoreAccessError if error._code in ("400", "403") else StoreError
    return kind(f"the store at {settings.endpoint} makes no user for the jobs ({said})")


def _given(variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{variable} is not set: the keys of the user to make")
    return value


def _work(args: argparse.Namespace) -> None:
    if args.store == "minio":
        make_minio_user(args.uri, _given(ACCESS_VARIABLE), _given(SECRET_VARIABLE))
        print(f"{args.uri}: its user is there, and may use this bucket only")
        return
    access, secret = (
        os.environ.get(f"AWS_{key}", "") for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    )
    config = seaweedfs_config(args.uri, StoreSettings(_HERE, access, secret))
    try:
        with open(args.file, "w", encoding="utf-8", opener=_for_us_alone) as file:
            json.dump(config, file)
    except OSError as error:
        raise UserError(f"cannot write {args.file}: {error.strerror}") from None
    print(f"{args.file}: the key of {args.uri}")


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def main() -> NoReturn:
    """The command; exit codes as of ``percmae``."""
    parser = argparse.ArgumentParser(prog="python -m percmae.storage.users", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    stores = parser.add_subparsers(dest="store", required=True)
    stores.add_parser("minio").add_argument("uri", metavar="s3://BUCKET")
    seaweedfs = stores.add_parser("seaweedfs")
    seaweedfs.add_argument("uri", metavar="s3://BUCKET")
    seaweedfs.add_argument("file", type=Path, metavar="FILE")
    sys.exit(exit_code(lambda: _work(parser.parse_args())))


if __name__ == "__main__":
    main()
