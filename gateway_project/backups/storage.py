"""Where backups lie: a folder, or a bucket that speaks S3. Written as a stream, seen when whole."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gateway_project.backups import BackupError
from gateway_project.core.stores import database

PART_BYTES = 16 << 20
"""S3 takes 10,000 parts: up to 160 GB encrypted."""
SUFFIX, MANIFEST = ".dump.age", ".json"


class Store(ABC):
    """`where` never holds credentials. What is not closed was never there."""

    where: str

    @abstractmethod
    def writer(self, name: str) -> Writer: ...

    @abstractmethod
    def reader(self, name: str) -> IO[bytes]:
        """Raises `BackupError` when there is no such file."""

    @abstractmethod
    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes:
        with self.reader(name) as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        writer = self.writer(name)
        try:
            writer.write(content)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def newest(self) -> str:
        """The name of the newest whole backup, without its suffix."""
        whole = [n.removesuffix(MANIFEST) for n in self.names() if n.endswith(MANIFEST)]
        if not whole:
            raise BackupError(f"There is no backup in {self.where}.")
        return max(whole)  # they are named by time


class Writer(io.RawIOBase):
    """A file-like object that counts and digests what goes through it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._sha256.update(content)
        self.bytes += len(content)
        self.put(content)
        return len(content)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def put(self, content: bytes) -> None:
        raise NotImplementedError

    def commit(self) -> None:
        """From here on it is there, whole."""
        raise NotImplementedError

    def abort(self) -> None:
        """Leave nothing behind; after `commit` nothing to do."""
        raise NotImplementedError


def open_store(place: str) -> Store:
    """`s3://bucket/prefix`, or the path of a folder. Raises `BackupError`."""
    parts = urlsplit(place)
    if parts.scheme == "s3":
        return Bucket(parts.netloc, parts.path.strip("/"))
    if parts.scheme and parts.scheme != "file":
        raise BackupError(f"{parts.scheme}:// is unknown: name a folder, or s3://bucket/prefix.")
    return Folder(Path(parts.path if parts.scheme else place))


class Folder(Store):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def writer(self, name: str) -> Writer:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise BackupError(f"{self.path} cannot be made: {exc.strerror}.") from None
        return _FileWriter(self.path / name)

    def reader(self, name: str) -> IO[bytes]:
        try:
            return (self.path / name).open("rb")
        except OSError as exc:
            raise BackupError(f"{self.path / name}: {exc.strerror}.") from None

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.path.iterdir())
        except OSError as exc:
            raise BackupError(f"{self.path} cannot be read: {exc.strerror}.") from None


class _FileWriter(Writer):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._draft = path.with_name(f".{path.name}.partial")
        try:
            handle = os.open(self._draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        except OSError as exc:
            raise BackupError(f"{self._draft} cannot be written: {exc.strerror}.") from None
        self._file = os.fdopen(handle, "wb")

    def put(self, content: bytes) -> None:
        self._file.write(content)

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.rename(self._path)

    def abort(self) -> None:
        with suppress(OSError):  # the disk may be full, which is why
            self._file.close()
        self._draft.unlink(missing_ok=True)


class Bucket(Store):
    """By boto3, which reads credentials, region and `AWS_ENDPOINT_URL_S3` as everything does."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
        except ImportError:
            raise BackupError(
                "s3:// needs boto3: .venv/bin/pip install -r requirements/s3.txt, or an image that "
                "was built with EXTRA=s3."
            ) from None
        self._errors = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        self._client = boto3.client(
            "s3", config=botocore.config.Config(retries={"mode": "standard", "max_attempts": 5})
        )
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.where = f"s3://{bucket}/{prefix}"

    def _call(self, call: Callable[..., Any], **arguments: Any) -> Any:
        database.let_go()
        try:
            return call(Bucket=self._bucket, **arguments)
        except self._errors as exc:
            raise BackupError(f"{self.where}: {exc}") from None

    def writer(self, name: str) -> Writer:
        return _PartWriter(self, f"{self._prefix}{name}")

    def reader(self, name: str) -> IO[bytes]:
        found = self._call(self._client.get_object, Key=f"{self._prefix}{name}")
        body: IO[bytes] = found["Body"]
        return body

    def names(self) -> list[str]:
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self._call(self._client.list_objects_v2, Prefix=self._prefix, **token)
            found += [one["Key"].removeprefix(self._prefix) for one in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(found)
            token = {"ContinuationToken": page["NextContinuationToken"]}


class _PartWriter(Writer):
    def __init__(self, bucket: Bucket, key: str) -> None:
        super().__init__()
        self._bucket, self._key = bucket, key
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._done = False
        made = bucket._call(bucket._client.create_multipart_upload, Key=key)
        self._id = made["UploadId"]

    def put(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) >= PART_BYTES:
            self._send(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def _send(self, part: bytes) -> None:
        number = len(self._parts) + 1
        sent = self._bucket._call(
            self._bucket._client.upload_part,
            Key=self._key,
            UploadId=self._id,
            PartNumber=number,
            Body=part,
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    def commit(self) -> None:
        if self._buffer or not self._parts:
            self._send(bytes(self._buffer))
        self._bucket._call(
            self._bucket._client.complete_multipart_upload,
            Key=self._key,
            UploadId=self._id,
            MultipartUpload={"Parts": self._parts},
        )
        self._done = True

    def abort(self) -> None:
        if not self._done:
            with suppress(BackupError):
                self._bucket._call(
                    self._bucket._client.abort_multipart_upload, Key=self._key, UploadId=self._id
                )
