"""GET / and GET /{version}: which versions of the API there are. For anyone, like every service's version list."""

from __future__ import annotations

from fastapi import Request
from pydantic import BaseModel

from strongroom.api.authentication import public_router
from strongroom.api.errors import UNKNOWN_API, ApiError

router = public_router("versions")

_VERSIONS = {"v3": "CURRENT", "v3.1": "SUPPORTED", "v4": "SUPPORTED"}
_UPDATED = "2026-11-24T00:00:00Z"


class Link(BaseModel):
    href: str
    rel: str


class Version(BaseModel):
    id: str
    links: list[Link]
    status: str
    version: str
    min_version: str
    updated: str


class Versions(BaseModel):
    versions: list[Version]


class OneVersion(BaseModel):
    version: Version


def _version(request: Request, id: str) -> Version:
    href = f"{str(request.base_url).rstrip('/')}/{id}"
    links = [Link(href=href, rel="self")]
    return Version(id=id, links=links, status=_VERSIONS[id], version="", min_version="", updated=_UPDATED)


@router.get("/")
async def list_versions(request: Request) -> Versions:
    """All versions of the API."""
    return Versions(versions=[_version(request, id) for id in _VERSIONS])


@router.get("/{version}")
async def show_version(version: str, request: Request) -> OneVersion:
    """One version of the API."""
    if version not in _VERSIONS:
        raise ApiError(404, UNKNOWN_API, "The API does not exist.")
    return OneVersion(version=_version(request, version))
