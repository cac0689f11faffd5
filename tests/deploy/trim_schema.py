"""Cuts what the manifest uses out of the published Kubernetes schemas.

    python tests/deploy/trim_schema.py FOLDER > tests/deploy/kubernetes-1.37.json

FOLDER is `kubernetes-json-schema/v1.37.0-local-strict` of the distribution kubernetes-validate (Apache-2.0), which is
too large to install for one test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KINDS = {
    "ConfigMap": "configmap-v1",
    "DaemonSet": "daemonset-apps-v1",
    "Deployment": "deployment-apps-v1",
    "Namespace": "namespace-v1",
    "Service": "service-v1",
    "ServiceAccount": "serviceaccount-v1",
}


def trim(folder: Path) -> dict[str, object]:
    known = json.loads((folder / "_definitions.json").read_text())["$defs"]
    needed: dict[str, object] = {}

    def cut(part, inside: bool = False):
        """A schema without prose; `inside` a table of properties a key is a name and stays."""
        if isinstance(part, list):
            return [cut(each) for each in part]
        if not isinstance(part, dict):
            return part
        found = {}
        for key, value in part.items():
            if not inside and (key in ("description", "$schema", "$id") or key.startswith("x-kubernetes")):
                continue
            if key == "$ref":
                name = value.rsplit("/", 1)[1]
                if name not in needed:
                    needed[name] = None
                    needed[name] = cut(known[name])
                found[key] = f"#/$defs/{name}"
            else:
                found[key] = cut(value, inside=key == "properties" and not inside)
        return found

    kinds = {kind: cut(json.loads((folder / f"{file}.json").read_text())) for kind, file in KINDS.items()}
    return {
        "source": "Kubernetes 1.37.0 OpenAPI, strict, from kubernetes-validate 1.37.0 (Apache-2.0), without prose",
        "kinds": kinds,
        "$defs": needed,
    }


if __name__ == "__main__":
    json.dump(trim(Path(sys.argv[1])), sys.stdout, separators=(",", ":"), sort_keys=True)
    sys.stdout.write("\n")
