"""S3 error codes in words: what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from percmae.errors import StoreAccessError, StoreError
from percmae.storage.base import Target

# Code → message. The fields of Target, {doing} and {detail} (the store's own words) are filled in.
# These fail at once: no retry makes a wrong key right.
_ACCESS = {
    "NoSuchKey": "{uri} does not exist in the store at {store}",
    "NoSuchBucket": "the bucket '{bucket}' of {uri} does not exist in the store at {store}:"
    " create it, or correct the URI",
    "InvalidAccessKeyId": "the store at {store} does not know {who}{sent}: check {keys}",
    "SignatureDoesNotMatch": "the store at {store} refuses the secret key given for {who}{sent}:"
    " check {keys}",
    "AccessDenied": "the store at {store} does not let {who}{sent} {doing} {uri}: check its"
    " permissions, and {keys}",
    "ExpiredToken": "the session token ({token}) for the store at {store} has expired: get a new"
    " one",
    "InvalidToken": "the store at {store} does not accept the session token: check {token}, or"
    " leave it out",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store at {store} differ by"
    " more than 15 minutes: set the clock",
    "AuthorizationHeaderMalformed": "the store at {store} wants another region ({detail}): set"
    " AWS_REGION",
    "BucketAlreadyExists": "the bucket name '{bucket}' is taken by someone else at {store}:"
    " choose another",
    "InvalidBucketName": "'{bucket}' is not a valid bucket name",
    "NotImplemented": "the server at {store} cannot {doing} {uri} ({detail}): is it an S3 server?",
}
_FAILURE = {
    "PreconditionFailed": "{uri} was replaced while it was being read: read it again",
    "XMinioStorageFull": "the store at {store} is full: cannot {doing} {uri}",
    "QuotaExceeded": "the quota of the store at {store} is used up: cannot {doing} {uri}",
}
_REFUSES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "ExpiredToken",
    "InvalidToken",
}
_FULL = {"XMinioStorageFull", "QuotaExceeded"}
_NO_ROOM = 507
_SAME = {
    "NoSuchObject": "NoSuchKey",
    "TokenRefreshRequired": "ExpiredToken",
    "InvalidTokenId": "InvalidToken",
    "InvalidClientTokenId": "InvalidToken",
    "XMinioInvalidObjectName": "InvalidObjectName",
    "AllAccessDisabled": "AccessDenied",
    "InvalidRegion": "AuthorizationHeaderMalformed",
    "XMinioAdminBucketQuotaExceeded": "QuotaExceeded",
}


def is_absent(error: BaseException | None) -> bool:
    """Whether minio's ``error`` says that the object (not the bucket) does not exist."""
    return isinstance(error, S3Error) and _code(error) == "NoSuchKey"


def is_refused(error: MinioException) -> bool:
    """Whether the store does not take the keys, or does not allow them what was asked."""
    if not isinstance(error, S3Error):
        return False
    return _code(error) in _REFUSES or _came_without_a_reason(error, _REFUSES_BARELY)


def is_full(error: MinioException) -> bool:
    """Whether the store has no room."""
    if isinstance(error, S3Error):
        return _code(error) in _FULL or error.response.status == _NO_ROOM
    return _status(error) == _NO_ROOM


def code_of(error: MinioException) -> str:
    """The status and the store's own code of an error, for a message."""
    if isinstance(error, S3Error):
        return f"HTTP {error.response.status} {error.code or ''}".strip()
    return f"HTTP {_status(error)}"


def explain(error: Exception, doing: str, target: Target, ask: Callable[[], object]) -> StoreError:
    """The error to raise for what minio raised while ``doing`` something at ``target``.

    ``ask`` sends a request about the same object whose answer has a body: it raises the reason
    where an answer to HEAD came without one.
    """
    if isinstance(error, S3Error) and _came_without_a_reason(error):
        error = _ask_why(ask, error) or error
    if isinstance(error, S3Error):
        explained = _explain_code(error, doing, target)
    elif isinstance(error, InvalidResponseError | ServerError):
        explained = not_a_store(doing, target, f"HTTP {_status(error)}")
    elif isinstance(error, ParseError) or "XML" in str(error):
        explained = not_a_store(doing, target, "not the XML expected")
    else:  # minio-py checks names before it sends anything
        # What http.client says of a header that cannot be sent is the header, signature and all.
        shown = "a header that cannot be sent" if "header value" in str(error) else error
        explained = StoreAccessError(f"cannot {doing} {target.uri}: {shown}")
    # What decides is the store's last word, which callers look up in __cause__.
    explained.__cause__ = error
    return explained


def not_a_store(doing: str, target: Target, answer: str) -> StoreError:
    """The error for an answer that no S3 store would give."""
    return StoreError(
        f"cannot {doing} {target.uri}: the server at {target.store} does not answer"
        f" like an S3 store ({answer}); is the endpoint the store's API, not its web console?"
    )


def _explain_code(error: S3Error, doing: str, target: Target) -> StoreError:
    code = _code(error)
    kind = StoreAccessError if code in _ACCESS else StoreError
    text = (_ACCESS | _FAILURE).get(
        code, "cannot {doing} {uri}: the store at {store} answers {code}: {detail}"
    )
    detail = " ".join((error.message or code).split())
    return kind(text.format(code=code, doing=doing, detail=detail, **vars(target)))


def _code(error: S3Error) -> str:
    code = error.code or "an error without a code"
    return _SAME.get(code, code)


def _status(error: MinioException) -> object:
    return getattr(error, "_code", None) or getattr(error, "status_code", None)


_REFUSES_BARELY = ("AccessDenied", "BadRequest")


def _came_without_a_reason(
    error: S3Error, codes: Collection[str] = (*_REFUSES_BARELY, "NoSuchKey")
) -> bool:
    """An answer to HEAD has no body: 400, 403 and 404 then stand for several causes."""
    return not error.response.data and _code(error) in codes


def _ask_why(ask: Callable[[], object], bare: S3Error) -> S3Error | None:
    """The reason behind a bare refusal, by a request whose answer has a body."""
    try:
        ask()
    except S3Error as error:
        # Not being allowed to list does not change that the object is absent.
        telling = {"NoSuchBucket"} if _code(bare) == "NoSuchKey" else _ACCESS.keys()
        return error if _code(error) in telling else None
    except (MinioException, StoreError, ValueError, ParseError):
        return None
    return None
