"""The files between the steps: cluster.toml, blocks.json, profile.json, plan.json. Imports no room."""

from defer.documents.address import Address, parse_address
from defer.documents.base import Document, decode, encode
from defer.documents.blocks import BlockEntry, BlocksDocument, BoundaryEntry, TensorEntry
from defer.documents.cluster import (
    Cluster,
    Device,
    DirectedLink,
    Dispatcher,
    Link,
    Network,
    loads_cluster,
)
from defer.documents.files import read_bytes, write_bytes
from defer.documents.plan import (
    Objective,
    Plan,
    PlanAccuracy,
    PlanAlternative,
    PlanStage,
    PlanTerm,
    PlanTransfer,
)
from defer.documents.profile import CodecProfile, CostProfile, Created, DeviceProfile, LinkProfile
from defer.documents.schema import DOCUMENTS, schema

__all__ = [
    "DOCUMENTS",
    "Address",
    "BlockEntry",
    "BlocksDocument",
    "BoundaryEntry",
    "Cluster",
    "CodecProfile",
    "CostProfile",
    "Created",
    "Device",
    "DeviceProfile",
    "DirectedLink",
    "Dispatcher",
    "Document",
    "Link",
    "LinkProfile",
    "Network",
    "Objective",
    "Plan",
    "PlanAccuracy",
    "PlanAlternative",
    "PlanStage",
    "PlanTerm",
    "PlanTransfer",
    "TensorEntry",
    "decode",
    "encode",
    "loads_cluster",
    "parse_address",
    "read_bytes",
    "schema",
    "write_bytes",
]
