"""The Helm chart, rendered by Helm itself: what it makes of values, and what it refuses.

No cluster is at hand: the objects are held against schemas, and against what has to hold of them
(`tests.kubernetes`). That these checks find what is wrong is tested as well, by breaking it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import helm_python
import pytest
import yaml

from tests.kubernetes import (
    CHART,
    CHECKS,
    GROUP,
    NEEDED,
    STORE,
    Object,
    Rendered,
    everything_wrong,
    render,
)

EXAMPLES = {
    path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "examples").glob("*.yaml")
}
TLS = {"enabled": True, "issuer": {"name": "letsencrypt"}}
VALUES: dict[str, dict[str, Any]] = {
    **EXAMPLES,
    "default": {},
    "keys": {"objectStore": {**STORE, "existingSecret": "keys", "region": "eu-central-1"}},
    "endpoint": {"objectStore": {**STORE, "endpoint": "http://minio:9000"}},
    "anonymous": {"auth": {"allowAnonymous": True}},
    "traces": {"tracing": {"endpoint": "http://collector.monitoring:4318"}},
    "slow-queries": {"router": {"slowQueryMs": 500}},
    "tokens": {"auth": {"existingSecret": "keys", "jwt": True}},
    "cluster-tls": {"clusterTLS": {"enabled": True, "existingSecret": "cluster"}},
    "cluster-certificate": {"clusterTLS": {"enabled": True, "issuer": {"name": "ca"}}},
    "router-tls": {"routerTLS": {"enabled": True, "existingSecret": "router"}},
    "router-certificate": {
        "routerTLS": {"enabled": True, "issuer": {"name": "ca", "kind": "ClusterIssuer"}},
        "metrics": {"serviceMonitor": {"enabled": True}},
        "ingest": [{"name": "once", "source": "s3://b/a/", "collection": "c"}],
    },
    "audit": {"router": {"auditLog": True, "allowLocations": ["s3://a/b", "s3://c"]}},
    "own-image": {"image": {"repository": "registry:5000/shoal", "pullSecrets": [{"name": "x"}]}},
    "own-account": {"serviceAccount": {"create": False, "name": "shared"}},
    "named-account": {"serviceAccount": {"name": "own", "annotations": {"a": "b"}}},
    "fixed-routers": {"router": {"replicas": 5, "autoscaling": {"enabled": False}}},
    "long-drain": {"router": {"drainSeconds": 120}},
    "one-shard-server": {"shards": {"groups": [GROUP]}},
    "groups": {
        "shards": {
            "groups": [
                {**GROUP, "scratch": {"size": "1Ti", "storageClass": "fast"}},
                {**GROUP, "name": "gpu", "gpus": 2, "tolerations": [{"operator": "Exists"}]},
                {**GROUP, "name": "spot", "replicas": 9, "nodeSelector": {"spot": "true"}},
            ]
        }
    },
    "redis": {"head": {"redis": {"address": "redis:6379", "existingSecret": "redis"}}},
    "redis-without-password": {"head": {"redis": {"address": "10.0.0.1:6380"}}},
    "take-over": {"takeOver": "blue"},
    "ingress": {"ingress": {"enabled": True, "host": "a.example", "className": "nginx"}},
    "ingress-secret": {
        "ingress": {
            "enabled": True,
            "host": "a.example",
            "tls": {"enabled": True, "secretName": "own-certificate"},
        }
    },
    "ingress-certificate": {"ingress": {"enabled": True, "host": "a.example", "tls": TLS}},
    "ingress-grpc": {
        "ingress": {
            "enabled": True,
            "host": "a.example",
            "tls": TLS,
            "grpc": {
                "enabled": True,
                "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"},
            },
        }
    },
    "gateway": {"gateway": {"enabled": True, "parentRefs": [{"name": "main"}]}},
    "no-policies": {"networkPolicy": {"enabled": False}},
    "clients": {"networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}},
    "load-balancer": {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}},
    "metrics": {
        "metrics": {
            "serviceMonitor": {"enabled": True},
            "rules": {"enabled": True},
            "dashboard": {"enabled": True},
        }
    },
    "ingest": {
        "ingest": [
            {"name": "once", "source": "s3://b/a b/", "collection": "c", "args": ["--again"]},
            {"name": "daily", "source": "s3://b/c/", "collection": "c", "schedule": "@daily now"},
        ]
    },
}


@pytest.mark.parametrize("name", VALUES)
def test_what_it_makes_is_right(name: str) -> None:
    assert everything_wrong(render(VALUES[name])) == []


@pytest.mark.parametrize("release", ["a" * 53, "prod.eu", "my-shoal", "x" * 39 + "-shoal"])
def test_any_release_has_valid_names(release: str) -> None:
    everything = {**VALUES["metrics"], **VALUES["ingest"], **VALUES["ingress-grpc"]}
    assert everything_wrong(render(everything, release=release)) == []


def test_a_release_that_kuberay_would_refuse_is_refused() -> None:
    with pytest.raises(helm_python.HelmRenderError, match="begins with a letter"):
        render({}, release="7days")


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_has_nothing_to_say(name: str) -> None:
    report = helm_python.lint(CHART, NEEDED | VALUES[name], strict=True)
    assert report["errors"] == []
    said = {message["error"] for message in report["messages"]}
    assert said <= {"icon is recommended"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objectStore": {"url": ""}}, "objectStore.url|/objectStore/url"),
        ({"objectStore": {"url": "gs://bucket/x"}}, "/objectStore/url"),
        ({"objectStore": {**STORE, "endpoint": "minio:9000"}}, "/objectStore/endpoint"),
        ({"objectStore": {**STORE, "secretKey": "x"}}, "secretKey"),
        ({"router": {"replicas": 0}}, "/router/replicas"),
        ({"router": {"resources": {"requests": {"cpu": 1}}}}, "/router/resources/requests/cpu"),
        ({"routers": {}}, "routers"),
        ({"shards": {"groups": []}}, "/shards/groups"),
        ({"shards": {"groups": [{**GROUP, "name": "A b"}]}}, "/shards/groups/0/name"),
        ({"shards": {"groups": [{**GROUP, "resources": {}}]}}, "/shards/groups/0/resources"),
        ({"head": {"redis": {"address": "redis"}}}, "/head/redis/address"),
        ({"ingress": {"enabled": True}}, "ingress.host: expected a host name"),
        (
            {"ingress": {"enabled": True, "host": "a.example", "tls": {"enabled": True}}},
            "ingress.tls: expected a secretName",
        ),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs: expected a Gateway"),
        ({"ingest": [{"name": "x", "source": "/data", "collection": "c"}]}, "/ingest/0/source"),
        ({"logLevel": "loud"}, "/logLevel"),
        ({"tracing": {"endpoint": "collector:4317"}}, "/tracing/endpoint"),
        ({"router": {"slowQueryMs": -1}}, "/router/slowQueryMs"),
        ({"auth": {}}, "auth: expected an existingSecret, or allowAnonymous"),
        ({"clusterTLS": {"enabled": True}}, "clusterTLS: expected an existingSecret, or an issuer"),
        ({"routerTLS": {"enabled": True}}, "routerTLS: expected an existingSecret, or an issuer"),
        ({"router": {"allowLocations": ["/etc"]}}, "/router/allowLocations/0"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert re.search(message, str(refused.value)), refused.value


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version("shoal")
    (cluster,) = render({}).of("RayCluster")
    assert cluster["spec"]["rayVersion"] == version("ray")


def test_another_load_or_image_is_another_job() -> None:
    def job(values: dict[str, Any], **load: Any) -> str:
        load = {"name": "x", "source": "s3://b/c/", "collection": "c", **load}
        (name,) = render({**values, "ingest": [load]}).names("Job")
        return name

    names = {job({}), job({}, collection="d"), job({"image": {"tag": "next"}})}
    assert len(names) == 3
    assert job({}) in names


def test_names_of_any_kind_reach_commands_as_they_are() -> None:
    source, collection = "s3://b/a: b #c/*.parquet", 'it\'s: "so" #1'
    rendered = render({"ingest": [{"name": "x", "source": source, "collection": collection}]})
    command = rendered.of("Job")[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:4] == ["shoal", "ingest", source, f"--collection={collection}"]
    assert "--allow-location=s3://b/a: b #c" in rendered.pod("router").containers()[0]["command"]


Break = Callable[[Rendered], object]
FULL = {
    **VALUES["metrics"],
    **VALUES["ingest"],
    **VALUES["ingress-grpc"],
    **VALUES["groups"],
    **VALUES["redis"],
    "objectStore": {**STORE, "existingSecret": "store"},
    "clusterTLS": {"enabled": True, "issuer": {"name": "ca"}},
    "routerTLS": {"enabled": True, "issuer": {"name": "ca"}},
    "gateway": {"enabled": True, "parentRefs": [{"name": "main"}]},
    **VALUES["traces"],
}


def find(rendered: Rendered, kind: str, name: str = "") -> Object:
    return next(one for one in rendered.of(kind) if one["metadata"]["name"].endswith(name))


def container(rendered: Rendered, component: str) -> Object:
    one: Object = rendered.pod(component).spec["containers"][0]
    return one


def selector_of(one: Object) -> Object:
    labels: Object = one["spec"]["selector"]["matchLabels"]
    return labels


def variable(rendered: Rendered, component: str, name: str) -> Object:
    one: Object = next(
        each for each in container(rendered, component)["env"] if each["name"] == name
    )
    return one


def replace(one: Object, key: str, old: str, new: str) -> None:
    one[key] = [word.replace(old, new) for word in one[key]]


COMPONENT = "app.kubernetes.io/component"
COMPONENTS = ["router", "supervisor", "head", "shard", "client"]
RUNNING = COMPONENTS[:-1]
PLAIN = {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}


def spec(rendered: Rendered, component: str) -> Object:
    return rendered.pod(component).spec


def confinement(rendered: Rendered, component: str) -> Object:
    one: Object = container(rendered, component)["securityContext"]
    return one


def ray(rendered: Rendered) -> Object:
    one: Object = find(rendered, "RayCluster")["spec"]
    return one


def start_of_shards(rendered: Rendered) -> Object:
    one: Object = ray(rendered)["workerGroupSpecs"][0]["rayStartParams"]
    return one


def rule(rendered: Rendered) -> Object:
    one: Object = find(rendered, "PrometheusRule")["spec"]["groups"][0]["rules"][0]
    return one


def policy(rendered: Rendered, component: str) -> Object:
    return find(rendered, "NetworkPolicy", component)


OF_COMPONENTS: list[tuple[str, list[str], Callable[[str, Rendered], object]]] = [
    ("no limits", COMPONENTS, lambda c, r: container(r, c)["resources"].pop("limits")),
    ("no memory", COMPONENTS, lambda c, r: container(r, c)["resources"]["requests"].pop("memory")),
    ("a slip", COMPONENTS, lambda c, r: container(r, c).update(imagePullPolice="Never")),
    ("root", COMPONENTS, lambda c, r: spec(r, c)["securityContext"].pop("runAsNonRoot")),
    ("no seccomp", COMPONENTS, lambda c, r: spec(r, c)["securityContext"].pop("seccompProfile")),
    ("a writable root", COMPONENTS, lambda c, r: confinement(r, c).pop("readOnlyRootFilesystem")),
    ("escalation", COMPONENTS, lambda c, r: confinement(r, c).pop("allowPrivilegeEscalation")),
    ("capabilities", COMPONENTS, lambda c, r: confinement(r, c).pop("capabilities")),
    ("another user", COMPONENTS, lambda c, r: confinement(r, c).update(runAsUser=0)),
    ("the host's network", COMPONENTS, lambda c, r: spec(r, c).update(hostNetwork=True)),
    ("a token", COMPONENTS, lambda c, r: spec(r, c).pop("automountServiceAccountToken")),
    ("Services' variables", COMPONENTS, lambda c, r: spec(r, c).pop("enableServiceLinks")),
    ("the latest image", COMPONENTS, lambda c, r: container(r, c).update(image="shoal:latest")),
    ("no volume", COMPONENTS, lambda c, r: spec(r, c)["volumes"].pop(0)),
    ("a plain secret", COMPONENTS, lambda c, r: container(r, c).update(env=[PLAIN])),
    ("another account", COMPONENTS, lambda c, r: spec(r, c).update(serviceAccountName="other")),
    ("other labels", COMPONENTS, lambda c, r: r.pod(c).metadata["labels"].pop(COMPONENT)),
    ("no policy", COMPONENTS, lambda c, r: r.objects.remove(policy(r, c))),
    ("no startup", RUNNING, lambda c, r: container(r, c).pop("startupProbe")),
    ("no readiness", RUNNING, lambda c, r: container(r, c).pop("readinessProbe")),
    ("no liveness", RUNNING, lambda c, r: container(r, c).pop("livenessProbe")),
    ("no hook", ["router", "head", "shard"], lambda c, r: container(r, c).pop("lifecycle")),
    ("on one node", ["router", "shard"], lambda c, r: spec(r, c).pop("affinity")),
    ("in one zone", ["router", "shard"], lambda c, r: spec(r, c).pop("topologySpreadConstraints")),
    ("no way in", ["router", "head", "shard"], lambda c, r: policy(r, c)["spec"].pop("ingress")),
    ("no way out", COMPONENTS, lambda c, r: policy(r, c)["spec"].pop("egress")),
]
BREAKS: dict[str, Break] = {
    f"{component}: {what}": partial(break_, component)
    for what, components, break_ in OF_COMPONENTS
    for component in components
} | {
    "a probe of another port": lambda r: container(r, "shard")["readinessProbe"].update(
        grpc={"port": 1}
    ),
    "killed while it drains": lambda r: spec(r, "router").update(terminationGracePeriodSeconds=20),
    "a GPU without its image": lambda r: container(r, "shard")["resources"]["limits"].update(
        {"nvidia.com/gpu": 1}
    ),
    "an object twice": lambda r: r.objects.append(copy.deepcopy(r.objects[0])),
    "a name too long": lambda r: find(r, "RayCluster")["metadata"].update(name="a" * 42),
    "a Deployment of other pods": lambda r: selector_of(find(r, "Deployment", "router")).update(
        {COMPONENT: "head"}
    ),
    "a budget of nothing": lambda r: selector_of(find(r, "PodDisruptionBudget", "shard")).update(
        {COMPONENT: "shards"}
    ),
    "a budget that Kubernetes ignores": lambda r: find(r, "PodDisruptionBudget", "shard")[
        "spec"
    ].update(minAvailable="50%"),
    "a budget less": lambda r: r.objects.remove(find(r, "PodDisruptionBudget", "router")),
    "a service of others": lambda r: find(r, "Service")["spec"]["selector"].update(
        {"app.kubernetes.io/instance": "other"}
    ),
    "a port of nothing": lambda r: find(r, "Service")["spec"]["ports"][0].update(targetPort="x"),
    "an ingress to nowhere": lambda r: find(r, "Ingress")["spec"]["rules"][0]["http"]["paths"][0][
        "backend"
    ]["service"].update(name="other"),
    "a service by gRPC less": lambda r: find(r, "Ingress", "-grpc")["spec"]["rules"][0]["http"][
        "paths"
    ].pop(),
    "a match for gRPC less": lambda r: find(r, "HTTPRoute")["spec"]["rules"][0]["matches"].pop(),
    "a route for gRPC less": lambda r: find(r, "HTTPRoute")["spec"]["rules"].pop(0),
    "a route to nowhere": lambda r: find(r, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][
        0
    ].update(port=80),
    "a route in other words": lambda r: find(r, "HTTPRoute")["spec"].update(hosts=["a.example"]),
    "a certificate less": lambda r: r.objects.remove(find(r, "Certificate")),
    "a certificate of nobody": lambda r: find(r, "Certificate")["spec"].pop("issuerRef"),
    "a monitor of nothing": lambda r: selector_of(find(r, "ServiceMonitor")).update(
        {COMPONENT: "x"}
    ),
    "a monitor in other words": lambda r: find(r, "ServiceMonitor")["spec"].update(ports=["http"]),
    "a rule that is none": lambda r: rule(r).update(expr="sum(by"),
    "a rule without": lambda r: rule(r).update(labels=[]),
    "a dashboard that is none": lambda r: find(r, "ConfigMap")["data"].update(
        {"shoal.json": find(r, "ConfigMap")["data"]["shoal.json"].replace("rate(", "rate((")}
    ),
    "scales nothing": lambda r: find(r, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(
        name="other"
    ),
    "a secret of nobody": lambda r: variable(r, "router", "AWS_ACCESS_KEY_ID")["valueFrom"][
        "secretKeyRef"
    ].update(name="other"),
    "a password of nobody": lambda r: ray(r)["gcsFaultToleranceOptions"]["redisPassword"][
        "valueFrom"
    ]["secretKeyRef"].update(name="other"),
    "no Redis": lambda r: ray(r)["gcsFaultToleranceOptions"].pop("redisAddress"),
    "a key of nobody": lambda r: variable(r, "client", "SHOAL_API_KEY")["valueFrom"][
        "secretKeyRef"
    ].update(name="other"),
    "a cluster's certificate less": lambda r: r.objects.remove(find(r, "Certificate", "cluster")),
    "an option that is not there": lambda r: container(r, "router")["command"].append("--fast"),
    "a command that is not there": lambda r: replace(
        container(r, "supervisor"), "command", "supervise", "guard"
    ),
    "half a command": lambda r: container(r, "client").update(command=["shoal", "ingest"]),
    "another number of shard servers": lambda r: ray(r)["workerGroupSpecs"][0].update(replicas=7),
    "shard servers anywhere": lambda r: start_of_shards(r).pop("resources"),
    "resources for a shell to take apart": lambda r: start_of_shards(r).update(
        resources='{"shard_server": 1}'
    ),
    "work for the head": lambda r: ray(r)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
    "Ray for everybody": lambda r: ray(r).pop("authOptions"),
    "Ray in other words": lambda r: ray(r).update(workerGroups=[]),
    "another head": lambda r: replace(container(r, "supervisor"), "command", "-head-svc", "-head"),
    "an end with the head": lambda r: variable(
        r, "shard", "RAY_gcs_rpc_server_reconnect_timeout_s"
    ).update(value="60"),
    "traces of routers alone": lambda r: container(r, "shard")["env"].remove(
        variable(r, "shard", "OTEL_EXPORTER_OTLP_ENDPOINT")
    ),
    "traces that do not get out": lambda r: [
        rule["ports"].clear()
        for rule in policy(r, "router")["spec"]["egress"]
        if {"protocol": "TCP", "port": 4318} in rule["ports"]
    ],
    "a probe in the clear": lambda r: container(r, "router")["livenessProbe"]["httpGet"].pop(
        "scheme"
    ),
    "a probe that speaks no TLS": lambda r: container(r, "router").update(
        readinessProbe={"grpc": {"port": 6334}}
    ),
    "a service in the clear": lambda r: find(r, "Service")["spec"]["ports"][0].update(
        appProtocol="http"
    ),
    "metrics in the clear": lambda r: find(r, "ServiceMonitor")["spec"]["endpoints"][0].pop(
        "scheme"
    ),
    "a client in the clear": lambda r: replace(
        container(r, "client"), "command", "https:", "http:"
    ),
    "a client that knows nobody": lambda r: container(r, "client")["env"].remove(
        variable(r, "client", "SSL_CERT_FILE")
    ),
    "a client with the key": lambda r: spec(r, "client")["volumes"][-1]["secret"].pop("items"),
    "a certificate of routers less": lambda r: r.objects.remove(
        find(r, "Certificate", "shoal-router")
    ),
    "no key": lambda r: container(r, "router")["env"].remove(
        variable(r, "router", "SHOAL_API_KEY")
    ),
    "everybody let in": lambda r: container(r, "router")["command"].append("--allow-anonymous"),
    "a key that may be missing": lambda r: variable(r, "router", "SHOAL_API_KEY")["valueFrom"][
        "secretKeyRef"
    ].update(optional=True),
    "a second key that is wanted": lambda r: variable(r, "router", "SHOAL_ALT_API_KEY")[
        "valueFrom"
    ]["secretKeyRef"].update(optional=False),
    "shards for everybody": lambda r: policy(r, "shard")["spec"]["ingress"].append({}),
}


@pytest.fixture(scope="module")
def full() -> Rendered:
    rendered = render(FULL)
    assert everything_wrong(rendered) == []
    return rendered


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found(full: Rendered, name: str) -> None:
    broken = full._replace(objects=copy.deepcopy(full.objects))
    BREAKS[name](broken)
    assert broken.objects != full.objects
    assert everything_wrong(broken) != []


def test_each_check_finds_something(full: Rendered) -> None:
    idle = set(CHECKS)
    for break_ in BREAKS.values():
        broken = full._replace(objects=copy.deepcopy(full.objects))
        break_(broken)
        idle -= {check for check in idle if list(check(broken))}
    assert idle == set()
