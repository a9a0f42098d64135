"""Objects in a bucket of S3, or of a server that speaks its protocol.

The server must honour ``If-None-Match: *`` on PutObject (S3 does since 2024). This is tried out
when the store is opened, since a server that ignores it would lose data without a word.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)

from shard.errors import InvalidInput, NotFound, Unavailable
from shard.objects.keys import check_key, is_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 4
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 20.0
_CONNECTIONS = 64
_MEBIBYTE = 1 << 20
_TRANSFER = TransferConfig(
    multipart_threshold=32 * _MEBIBYTE,
    multipart_chunksize=16 * _MEBIBYTE,
    max_concurrency=8,
    num_download_attempts=_ATTEMPTS,
)
# No key can hold a "~": this object is never listed.
_PROBE = "~conditional-write"

# What the server says before it has looked at the object, so that trying again is safe even for a
# conditional write.
_REFUSED = {"SlowDown", "RequestTimeout", "ConditionalRequestConflict", "TooManyRequests"}


class S3ObjectStore:
    """An `shard.objects.ObjectStore` below a prefix of one bucket.

    Region, credentials and endpoint are found as every AWS tool finds them: ``AWS_REGION``,
    ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, profiles, instance
    roles. Where an endpoint is set, the bucket goes into the path, not the host name.

    SeaweedFS lists a folder's keys right after the folder's name, and so before names that go on
    with "-" or "."; `list` is as the server orders. No two names in one folder of Shoal's layout
    begin alike in that way.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        """Raises NotFound when there is no such bucket, Unavailable when it cannot be used."""
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._name = f"s3://{bucket}/{prefix}"
        session = boto3.session.Session()
        self._client = _client(session, _ATTEMPTS)
        # A retry inside of botocore could meet the object that its own first try created.
        self._once = _client(session, 1)
        self._check_bucket()

    @classmethod
    def from_url(cls, url: str) -> S3ObjectStore:
        """The store at ``s3://BUCKET/PREFIX``. Raises InvalidInput, or as the constructor does."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise InvalidInput(f"data {url!r}: expected s3://BUCKET or s3://BUCKET/PREFIX")
        return cls(bucket, prefix.strip("/"))

    def get(self, key: str) -> bytes:
        return self._get(key, {})

    def get_range(self, key: str, start: int, length: int) -> bytes:
        # HTTP has no empty range.
        span = {"Range": f"bytes={start}-{start + max(length, 1) - 1}"}
        return self._get(key, span)[:length]

    def put(self, key: str, data: bytes) -> None:
        name = self._object(key)
        try:
            self._client.put_object(Bucket=self._bucket, Key=name, Body=data)
        except (BotoCoreError, ClientError) as error:
            self._unavailable(error)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._put_if_absent(self._object(key), data)

    def put_file(self, key: str, path: Path) -> None:
        name = self._object(key)
        try:
            self._client.upload_file(str(path), self._bucket, name, Config=_TRANSFER)
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            self._unavailable(error)

    def get_file(self, key: str, path: Path) -> None:
        name = self._object(key)
        try:
            # Written beside ``path`` and renamed.
            self._client.download_file(self._bucket, name, str(path), Config=_TRANSFER)
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            self._missing_or_unavailable(error, key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        after: dict[str, Any] = {"StartAfter": self._prefix + start_after} if start_after else {}
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix, **after
        )
        try:
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._prefix)
                    if is_key(key):
                        yield key
        except (BotoCoreError, ClientError) as error:
            self._unavailable(error)

    def delete(self, key: str) -> None:
        name = self._object(key)
        try:
            self._client.delete_object(Bucket=self._bucket, Key=name)
        except (BotoCoreError, ClientError) as error:
            if not _is_missing_key(error):
                self._unavailable(error)

    def _object(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _get(self, key: str, span: dict[str, Any]) -> bytes:
        name = self._object(key)
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=name, **span)
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError) and _status(error) == 416:
                    return b""  # The range starts at or after the end.
                self._missing_or_unavailable(error, key)
            try:
                return answer["Body"].read()
            except (HTTPClientError, IncompleteReadError) as error:
                # botocore tries again up to the headers, not when the body breaks off.
                if attempt + 1 == _ATTEMPTS:
                    self._unavailable(error)
            _pause(attempt)
        raise AssertionError

    def _put_if_absent(self, name: str, data: bytes) -> bool:
        """Tries again only where the failed try cannot have created the object."""
        for attempt in range(_ATTEMPTS):
            try:
                self._once.put_object(Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if _status(error) == 412:
                    return False
                if _code(error) not in _REFUSED or attempt + 1 == _ATTEMPTS:
                    self._unavailable(error)
            except (EndpointConnectionError, ConnectTimeoutError) as error:
                if attempt + 1 == _ATTEMPTS:
                    self._unavailable(error)
            except BotoCoreError as error:
                self._unavailable(error)
            _pause(attempt)
        raise AssertionError

    def _check_bucket(self) -> None:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and _status(error) == 404:
                raise NotFound(
                    f"bucket {self._bucket!r} does not exist; create it before Shoal starts"
                ) from error
            self._unavailable(error)
        name = self._prefix + _PROBE
        if self._put_if_absent(name, b"") and self._put_if_absent(name, b""):
            raise Unavailable(
                f"object store {self._name}: the server ignores If-None-Match on PutObject, which "
                "Shoal needs to keep a single writer; use a server with conditional writes"
            )

    def _missing_or_unavailable(self, error: Exception, key: str) -> NoReturn:
        if _is_missing_key(error):
            raise NotFound(f"object {key!r} does not exist") from error
        self._unavailable(error)

    def _unavailable(self, error: Exception) -> NoReturn:
        reason = str(error)
        if isinstance(error, NoCredentialsError):
            reason = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise Unavailable(f"object store {self._name}: {reason}") from error


def _client(session: boto3.session.Session, attempts: int) -> S3Client:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # Not every server knows the newer checksums; TLS and Shoal's own guard what is stored.
    checksums: Any = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return session.client(
        "s3",
        region_name=os.environ.get("AWS_REGION") or session.region_name or "us-east-1",
        config=Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            # The standard mode waits with full jitter.
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
            s3={"addressing_style": "path" if endpoint else "auto"},
            **checksums,
        ),
    )


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_missing_key(error: Exception) -> bool:
    # A bucket that has gone is no sign of a key that never was.
    return (
        isinstance(error, ClientError) and _status(error) == 404 and _code(error) != "NoSuchBucket"
    )


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.1 * 2**attempt))  # noqa: S311 - a pause
