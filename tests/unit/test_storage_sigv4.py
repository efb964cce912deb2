"""Signature version 4, against the examples that Amazon publishes with the scheme."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from strongroom.storage.sigv4 import Credentials, query_string, signed_headers

EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
NOW = datetime(2013, 5, 24, tzinfo=UTC).timestamp()
URL = "https://examplebucket.s3.amazonaws.com/"


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        ({"lifecycle": ""}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ({"prefix": "J", "max-keys": "2"}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
    ids=["GET Bucket Lifecycle", "GET Bucket (List Objects)"],
)
def test_the_published_examples_come_out(query: dict[str, str], signature: str) -> None:
    """Both examples of the S3 API reference that have no body and no further header."""
    headers = signed_headers("GET", URL, query, "us-east-1", EXAMPLE, NOW)
    assert headers["x-amz-date"] == "20130524T000000Z"
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature={signature}"
    )


def test_a_session_token_is_sent_and_signed() -> None:
    """Temporary credentials work, and a token cannot be swapped on the way."""
    tokened = [signed_headers("GET", URL, {}, "us-east-1", Credentials("key", "secret", token), NOW) for token in ("one", "two")]
    assert tokened[0]["x-amz-security-token"] == "one"
    assert "x-amz-security-token," in tokened[0]["authorization"]
    assert tokened[0]["authorization"] != tokened[1]["authorization"]


def test_a_query_is_sorted_and_encoded_as_it_is_signed() -> None:
    """What is sent must be what was signed, to the byte."""
    assert query_string({"b": "x y/z", "a": ""}) == "a=&b=x%20y%2Fz"


def test_a_repr_shows_no_secret() -> None:
    """Credentials end in tracebacks."""
    assert "secret" not in repr(Credentials("key", "a-secret", "a-secret-token")).replace("secret_key", "")
