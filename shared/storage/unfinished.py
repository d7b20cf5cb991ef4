"""Puts of several parts that nobody will finish: S3 keeps their parts, unseen and charged for, until they are aborted.

obstore can neither list nor abort them, so these two requests are signed here (AWS Signature Version 4), with the keys
in the environment. Where credentials come from elsewhere (a role, an instance) only a lifecycle rule of the bucket
removes them. Google and Azure have rules of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import html
import http.client
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from shared.errors import StorageUnavailable
from shared.storage.disk import in_thread

logger = logging.getLogger(__name__)

#: What a store answers that knows no such request, or whose owner does not let us make it.
_NOT_FOR_US = (403, 405, 501)
_NOTHING = hashlib.sha256(b"").hexdigest()


def endpoint_of(env: Mapping[str, str]) -> str:
    """Return the address of whatever is not Amazon's, by its names in the order in which obstore looks for them."""
    return env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or env.get("AWS_ENDPOINT") or ""


@dataclass(frozen=True)
class UnfinishedPuts:
    """The unfinished puts below one prefix of a bucket."""

    endpoint: str
    region: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    #: For each request.
    seconds: float = 5.0

    @classmethod
    def of(cls, url: str, env: Mapping[str, str], seconds: float) -> UnfinishedPuts | None:
        """Return those of a storage's address, or None where they cannot be asked for."""
        access_key, secret_key = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
        if not url.startswith("s3://") or not access_key or not secret_key:
            return None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
        endpoint = endpoint_of(env) or f"https://s3.{region}.amazonaws.com"
        return cls(
            endpoint.rstrip("/"),
            region,
            bucket,
            f"{prefix}/" if prefix else "",
            access_key,
            secret_key,
            env.get("AWS_SESSION_TOKEN", ""),
            seconds,
        )

    async def sweep(self, older_than_seconds: float) -> int:
        """Abort those that were begun so long ago, a thousand at the most; return how many.

        Raises StorageUnavailable.
        """
        return await in_thread(Path(self.bucket), lambda: self._sweep(older_than_seconds))

    def _sweep(self, older_than_seconds: float) -> int:
        swept = 0
        now = datetime.now(UTC)
        for key, upload_id, begun in self._listed():
            if (now - begun).total_seconds() > older_than_seconds:
                self._request("DELETE", f"/{self.bucket}/{key}", {"uploadId": upload_id})
                swept += 1
        return swept

    def _listed(self) -> Iterator[tuple[str, str, datetime]]:
        body = self._request("GET", f"/{self.bucket}", {"uploads": "", "prefix": self.prefix}).decode()
        for upload in re.findall(r"<Upload>(.*?)</Upload>", body, re.DOTALL):
            told = {name: html.unescape(value) for name, value in re.findall(r"<(\w+)>([^<]*)</", upload)}
            with contextlib.suppress(KeyError, ValueError):
                if told["Key"].startswith(self.prefix):
                    yield told["Key"], told["UploadId"], datetime.fromisoformat(told["Initiated"])

    def _request(self, method: str, path: str, query: Mapping[str, str]) -> bytes:
        address = urlsplit(self.endpoint)
        path = quote(address.path + path)
        words = "&".join(f"{name}={quote(query[name], safe='')}" for name in sorted(query))
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        with closing(kind(address.netloc, timeout=self.seconds)) as connection:
            try:
                connection.request(method, f"{path}?{words}", headers=self._signed(method, address.netloc, path, words))
                answer = connection.getresponse()
                body = answer.read()
            except http.client.HTTPException as exc:
                raise StorageUnavailable(f"unfinished puts: {type(exc).__name__}") from exc
        if answer.status in _NOT_FOR_US:
            logger.warning("unfinished puts are not ours to list or abort", extra={"status": answer.status})
        # Another sweep may have been faster.
        elif answer.status >= 300 and answer.status != 404:
            raise StorageUnavailable(f"unfinished puts: {answer.status} {answer.reason}")
        return body

    def _signed(self, method: str, host: str, path: str, query: str) -> dict[str, str]:
        """Return the headers of a request without a body, signed (AWS Signature Version 4)."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": now}
        if self.session_token:
            headers["x-amz-security-token"] = self.session_token
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}\n" for name in sorted(headers)]
        request = "\n".join([method, path, query, "".join(lines), names, _NOTHING])
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = f"AWS4{self.secret_key}".encode()
        for part in (*scope.split("/"), to_sign):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = f"Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        return headers | {"authorization": f"AWS4-HMAC-SHA256 {signature}"}
