"""Closed shapes of the kinds that are neither Kubernetes' own nor KubeRay's: only what we use is allowed."""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
INTEGER: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def closed(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


METADATA = closed("name", name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)


def _kind(version: str, kind: str, spec: Schema) -> tuple[tuple[str, str], Schema]:
    properties = {"apiVersion": one_of(version), "kind": one_of(kind), "metadata": METADATA, "spec": spec}
    return (version, kind), closed("apiVersion", "kind", "metadata", "spec", **properties)


_LISTENER = closed(
    "name",
    "port",
    "protocol",
    "tls",
    name=STRING,
    hostname=STRING,
    port=PORT,
    protocol=one_of("HTTPS"),
    tls=closed(
        "certificateRefs",
        mode=one_of("Terminate"),
        certificateRefs=many(closed("name", kind=one_of("Secret"), name=STRING)),
    ),
    allowedRoutes=closed(namespaces=closed(**{"from": one_of("All", "Same", "Selector")})),
)
_ROUTE_RULE = closed(
    "backendRefs",
    matches=many(closed("method", method=closed("service", service=STRING, method=STRING))),
    backendRefs=many(closed("name", "port", name=STRING, port=PORT)),
)
_ALERT = closed(
    "alert",
    "expr",
    "labels",
    "annotations",
    alert=STRING,
    expr=STRING,
    **{"for": DURATION},
    labels=closed("severity", severity=one_of("critical", "warning")),
    annotations=closed("summary", summary=STRING),
)
_KEY = closed("kind", "name", kind=one_of("Issuer"), name=STRING)

SHAPES: dict[tuple[str, str], Schema] = dict(
    [
        _kind(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            closed("gatewayClassName", "listeners", gatewayClassName=STRING, listeners=many(_LISTENER)),
        ),
        _kind(
            "gateway.networking.k8s.io/v1",
            "GRPCRoute",
            closed(
                "parentRefs",
                "rules",
                parentRefs=many(closed("name", name=STRING, sectionName=STRING)),
                hostnames=many(STRING),
                rules=many(_ROUTE_RULE),
            ),
        ),
        _kind(
            "monitoring.coreos.com/v1",
            "PodMonitor",
            closed(
                "selector",
                "podMetricsEndpoints",
                selector=closed("matchLabels", matchLabels=STRINGS),
                podMetricsEndpoints=many(closed("port", port=STRING, path=STRING, interval=DURATION)),
            ),
        ),
        _kind(
            "monitoring.coreos.com/v1",
            "PrometheusRule",
            closed("groups", groups=many(closed("name", "rules", name=STRING, interval=DURATION, rules=many(_ALERT)))),
        ),
        _kind("cert-manager.io/v1", "Issuer", closed(selfSigned=closed(), ca=closed("secretName", secretName=STRING))),
        _kind(
            "cert-manager.io/v1",
            "Certificate",
            closed(
                "secretName",
                "issuerRef",
                secretName=STRING,
                isCA={"type": "boolean"},
                commonName=STRING,
                dnsNames=many(STRING),
                duration=DURATION,
                usages=many(one_of("server auth", "client auth")),
                issuerRef=_KEY,
            ),
        ),
    ]
)
