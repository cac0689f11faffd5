"""JSON Schema of the documents, made from their types so that it cannot drift from what is read."""

from __future__ import annotations

from typing import Any

import msgspec

from defer.documents.base import Document
from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import UsageError

DOCUMENTS: dict[str, type[Document]] = {
    kind.KIND: kind for kind in (Cluster, BlocksDocument, CostProfile, Plan)
}
"""Every document by its kind."""


def schema(name: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document `name`: cluster, blocks, profile or plan.

    Raises:
        UsageError: There is no such document; the hint lists them.
    """
    kind = DOCUMENTS.get(name.removesuffix(".json").removesuffix(".toml"))
    if kind is None:
        raise UsageError(f"there is no document {name!r}", hint=f"documents are {', '.join(DOCUMENTS)}")
    made = msgspec.json.schema(kind)
    own = made["$defs"][kind.__name__]
    constant = {"description": "Kind of the document", "const": kind.KIND}
    own["properties"] = {"kind": constant, **own["properties"]}
    own["properties"]["version"] = {"description": "Version of the format", "const": 1, "default": 1}
    if kind is not Cluster:  # people write cluster.toml and may leave both out
        own["required"] = ["kind", "version", *own.get("required", ())]
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"defer {kind.KIND}", **made}
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))  # defaults are Python values
    return plain
