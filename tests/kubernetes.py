"""The Helm chart as Helm renders it, and what has to hold of the objects.

Each check yields a sentence for everything that is wrong. Custom resources are held against the
schemas in ``tests/data/crds``, whose origin is told in each of them; all else, pods in custom
resources included, against Kubernetes' own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import helm_python
import jsonschema
import kubernetes_validate
import promql_parser
import yaml
from grpc_health.v1 import health

from router.cli import main
from router.grpc import protocol

Object = dict[str, Any]

CHART = Path(__file__).parents[1] / "deploy" / "helm"
STORE = {"url": "s3://bucket/prefix"}
NEEDED: dict[str, Any] = {"objectStore": STORE, "auth": {"existingSecret": "keys"}}
GROUP = {
    "name": "cpu",
    "replicas": 1,
    "resources": {
        "requests": {"cpu": "1", "memory": "1Gi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    },
    "scratch": {"size": "1Gi"},
}
CRDS = Path(__file__).parent / "data" / "crds"
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the chart's oldest, and the newest that is known here."""
RUNS_ON = {"Deployment", "RayCluster"}
_COMPONENT = "app.kubernetes.io/component"
_OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROBES = ("grpc", "httpGet", "tcpSocket")
_SECRET = re.compile("SECRET|PASSWORD|TOKEN|ACCESS_KEY|CREDENTIAL")
_POD_SELECTORS = ("podSelector", "labelSelector", "selector")


class PodTemplate(NamedTuple):
    """A pod as some object makes it."""

    owner: str
    kind: str
    metadata: Object
    spec: Object

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.metadata.get("labels", {})
        return labels

    @property
    def component(self) -> str:
        return self.labels.get(_COMPONENT, "")

    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


class Rendered(NamedTuple):
    """One rendering of the chart."""

    objects: list[Object]
    image: str
    """Repository and the chart's appVersion."""
    external: frozenset[str]
    """Secrets and service accounts, by name, that values or KubeRay have made elsewhere."""

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in self.of(kind)}

    def pods(self) -> list[PodTemplate]:
        return [
            PodTemplate(title(one), one["kind"], template.get("metadata", {}), template["spec"])
            for one in self.objects
            for template in _templates(one)
        ]

    def pod(self, component: str) -> PodTemplate:
        """The first of that component."""
        return next(pod for pod in self.pods() if pod.component == component)


def render(values: dict[str, Any], *, release: str = "shoal") -> Rendered:
    """What Helm makes of the chart for ``values`` over `NEEDED`."""
    values = NEEDED | values
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name=release, namespace="search")
        repository = chart.merge_values(values)["image"]["repository"]
    objects = [
        one
        for name, text in files.items()
        if name.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one is not None
    ]
    (cluster,) = (one["metadata"]["name"] for one in objects if one["kind"] == "RayCluster")
    named = {
        cluster,  # KubeRay keeps Ray's token there.
        values["objectStore"].get("existingSecret"),
        values["auth"].get("existingSecret"),
        values.get("clusterTLS", {}).get("existingSecret"),
        values.get("routerTLS", {}).get("existingSecret"),
        values.get("head", {}).get("redis", {}).get("existingSecret"),
        values.get("ingress", {}).get("tls", {}).get("secretName"),
        values.get("serviceAccount", {}).get("name"),
    }
    return Rendered(objects, f"{repository}:{version('shoal')}", frozenset(named - {None}))


def title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def _templates(one: Object) -> list[Object]:
    spec = one.get("spec", {})
    match one["kind"]:
        case "Pod":
            return [one]
        case "Deployment" | "Job":
            return [spec["template"]]
        case "CronJob":
            return [spec["jobTemplate"]["spec"]["template"]]
        case "RayCluster":
            return [spec["headGroupSpec"]["template"]] + [
                group["template"] for group in spec["workerGroupSpecs"]
            ]
    return []


def everything_wrong(rendered: Rendered) -> list[str]:
    return [wrong for check in CHECKS for wrong in check(rendered)]


def schemas(rendered: Rendered) -> Iterator[str]:
    for one in rendered.objects:
        schema = _custom(one["kind"])
        if schema is not None:
            for error in schema.iter_errors(one):
                yield f"{title(one)}: {error.json_path}: {error.message}"
            plain = {"apiVersion": "v1", "kind": "Pod"}
            native = [
                {**plain, "metadata": {"name": "x", **template["metadata"]}, **template}
                for template in _templates(one)
            ]
        else:
            native = [one]
        for kubernetes in VERSIONS:
            for each in native:
                if error := _error(json.dumps(each), kubernetes):
                    yield f"{title(one)}: {error} ({kubernetes})"


@cache  # Most objects are the same time and again.
def _error(text: str, kubernetes: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(text), kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


@cache
def _custom(kind: str) -> jsonschema.Draft7Validator | None:
    path = CRDS / f"{kind.lower()}.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text())) if path.exists() else None


def names_are_unique_and_valid(rendered: Rendered) -> Iterator[str]:
    for name, count in Counter(map(title, rendered.objects)).items():
        if count > 1:
            yield f"{name} is there {count} times"
    for one in rendered.objects:
        name = one["metadata"]["name"]
        # KubeRay appends to that of a RayCluster, and so does a CronJob to its own.
        longest = {"RayCluster": 41, "CronJob": 52}.get(one["kind"], 63)
        if len(name) > longest or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{title(one)} is not a name"


def containers_are_confined(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.owner} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.owner} has no seccomp profile"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner} gets a token of Kubernetes"
        if pod.spec.get("enableServiceLinks") is not False:
            # SHOAL_PORT would be tcp://10.0.0.1:6333.
            yield f"{pod.owner} takes variables of Services for its own"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.owner} has {key}"
        for container in pod.containers():
            own = container.get("securityContext", {})
            name = f"{pod.owner}, {container['name']}"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name} may write to its root"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{name} may gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name} has capabilities"
            if {"runAsUser", "runAsNonRoot", "seccompProfile"} & own.keys():
                yield f"{name} differs from its pod"


def containers_are_sized(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        for container in pod.containers():
            for kind in ("requests", "limits"):
                missing = {"cpu", "memory"} - container.get("resources", {}).get(kind, {}).keys()
                if missing:
                    yield f"{pod.owner}, {container['name']} has no {kind} of {sorted(missing)}"


def containers_are_probed(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        if pod.kind not in RUNS_ON:
            continue
        for container in pod.spec["containers"]:
            ports = container.get("ports", [])
            known = {one["containerPort"] for one in ports} | {one["name"] for one in ports}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                asked: Object = next((probe[way] for way in _PROBES if way in probe), {})
                if asked.get("port") not in known:
                    yield f"{pod.owner}, {container['name']} has no {kind} of a port of its own"


def pods_stop_in_order(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        hooks = [one.get("lifecycle", {}).get("preStop") for one in pod.spec["containers"]]
        if pod.component in ("router", "head", "shard") and not all(hooks):
            yield f"{pod.owner} has no preStop hook"
        for hook in hooks:
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            if hook and "sleep" in hook and hook["sleep"]["seconds"] + 16 >= grace:
                yield f"{pod.owner} is killed before it has drained"


def images_are_of_this_version(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        for container in pod.containers():
            limits = container.get("resources", {}).get("limits", {})
            expected = rendered.image + ("-gpu" if "nvidia.com/gpu" in limits else "")
            if container["image"] != expected:
                yield f"{pod.owner}, {container['name']}: image {container['image']}"


def volumes_are_mounted(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        there = {one["name"] for one in pod.spec.get("volumes", [])}
        mounts = [one for each in pod.containers() for one in each.get("volumeMounts", [])]
        if there != {one["name"] for one in mounts}:
            yield f"{pod.owner} mounts other volumes than it has"
        if "/tmp" not in {one["mountPath"] for one in mounts}:
            yield f"{pod.owner} has no place to write"


def secrets_are_referred_to(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        for container in pod.containers():
            for variable in container.get("env", []):
                # Other than RAY_AUTH_MODE, which is `token`, no variable may tell what it names.
                if _SECRET.search(variable["name"]) and "valueFrom" not in variable:
                    yield f"{pod.owner}: {variable['name']} is there for all to read"


def references_lead_somewhere(rendered: Rendered) -> Iterator[str]:
    made = {one["spec"]["secretName"] for one in rendered.of("Certificate")}
    there = {
        "secretKeyRef": rendered.names("Secret") | made | rendered.external,
        "secretRef": rendered.names("Secret") | made | rendered.external,
        "configMapKeyRef": rendered.names("ConfigMap"),
        "configMapRef": rendered.names("ConfigMap"),
        "configMap": rendered.names("ConfigMap"),
    }
    for one in rendered.objects:
        for key, value in _walk(one):
            if key in there and value["name"] not in there[key]:
                yield f"{title(one)}: {key} {value['name']} is nowhere"
            if key == "secretName" and value not in there["secretKeyRef"]:
                yield f"{title(one)}: secret {value} is nowhere"
            if key == "serviceAccountName" and value not in (
                rendered.names("ServiceAccount") | rendered.external
            ):
                yield f"{title(one)}: service account {value} is nowhere"
            if key == "scaleTargetRef" and f"{value['kind']} {value['name']}" not in map(
                title, rendered.objects
            ):
                yield f"{title(one)}: scales what is not there"
            if key == "service" and "port" in value:
                yield from _service_port(rendered, one, value["name"], value["port"]["name"])
            if key == "backendRefs":
                for backend in value:
                    yield from _service_port(rendered, one, backend["name"], backend["port"])
    for one in rendered.of("Service"):
        pods = [pod for pod in rendered.pods() if _matches(one["spec"]["selector"], pod.labels)]
        for pod in pods:
            known = {port["name"] for each in pod.containers() for port in each.get("ports", [])}
            for port in one["spec"]["ports"]:
                if port["targetPort"] not in known:
                    yield f"{title(one)}: {pod.owner} has no port {port['targetPort']}"


def _service_port(rendered: Rendered, one: Object, name: str, port: str | int) -> Iterator[str]:
    ports = {
        known
        for service in rendered.of("Service")
        if service["metadata"]["name"] == name
        for each in service["spec"]["ports"]
        for known in (each["name"], each["port"])
    }
    if port not in ports:
        yield f"{title(one)}: no port {port} of a service {name}"


def grpc_is_let_in(rendered: Rendered) -> Iterator[str]:
    """What leads gRPC in names every service that a router has, and nothing else."""
    services = [protocol.service(name).full_name for name in protocol.SERVICES]
    wanted = {f"/{name}" for name in (*services, health.SERVICE_NAME)}
    paths: dict[str, set[str]] = {}
    for one in rendered.of("Ingress"):
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                port = path["backend"]["service"]["port"]["name"]
                paths.setdefault(f"{title(one)}, port {port}", set()).add(path["path"])
    for one in rendered.of("HTTPRoute"):
        paths[f"{title(one)}, port grpc"] = set()
        for rule in one["spec"]["rules"]:
            (port,) = (backend["port"] for backend in rule["backendRefs"])
            port = {6333: "http", 6334: "grpc"}.get(port, port)
            named = {match["path"]["value"] for match in rule["matches"]}
            paths.setdefault(f"{title(one)}, port {port}", set()).update(named)
    for where, found in paths.items():
        expected = wanted if where.endswith("grpc") else {"/"}
        if found != expected:
            yield f"{where}: paths {sorted(found)}, expected {sorted(expected)}"


def selectors_find_pods(rendered: Rendered) -> Iterator[str]:
    pods = [pod.labels for pod in rendered.pods()]
    services = [one["metadata"].get("labels", {}) for one in rendered.of("Service")]
    own = rendered.objects[0]["metadata"]["labels"]["app.kubernetes.io/instance"]
    for one in rendered.objects:
        among = services if one["kind"] == "ServiceMonitor" else pods
        for key, value in _walk(one):
            if key not in _POD_SELECTORS:
                continue
            wanted = value.get("matchLabels", value)
            if wanted.get("app.kubernetes.io/instance") != own:
                yield f"{title(one)} selects what is not of this release: {wanted}"
            elif not any(_matches(wanted, labels) for labels in among):
                yield f"{title(one)} selects nothing: {wanted}"
    for one in rendered.of("Deployment"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        if not _matches(one["spec"]["selector"]["matchLabels"], labels):
            yield f"{title(one)} does not select its own pods"


def pods_are_spread(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        if pod.component not in ("router", "shard"):
            continue
        apart = {one["topologyKey"] for one in pod.spec.get("topologySpreadConstraints", [])}
        for _, value in _walk(pod.spec.get("affinity", {}).get("podAntiAffinity", {})):
            if isinstance(value, dict) and "topologyKey" in value:
                apart.add(value["topologyKey"])
        if apart != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            yield f"{pod.owner} may be all in one place"
        budgets = [
            one
            for one in rendered.of("PodDisruptionBudget")
            if _matches(one["spec"]["selector"]["matchLabels"], pod.labels)
        ]
        if len(budgets) != 1:
            yield f"{pod.owner} has {len(budgets)} disruption budgets"
        for budget in budgets:
            if pod.kind == "RayCluster" and not isinstance(budget["spec"].get("minAvailable"), int):
                yield f"{title(budget)}: of pods without a scale, minAvailable only, and a number"


def commands_are_shoals(rendered: Rendered) -> Iterator[str]:
    for pod in rendered.pods():
        for container in pod.containers():
            if container.get("command", [""])[0] != "shoal":
                continue
            _, name, *arguments = container["command"]
            try:
                main.commands[name].make_context(name, arguments)
            except (KeyError, click.ClickException) as error:
                yield f"{pod.owner}: {shlex.join(container['command'])}: {error}"


def ray_outlives_its_head(rendered: Rendered) -> Iterator[str]:
    for one in rendered.of("RayCluster"):
        head, groups = one["spec"]["headGroupSpec"], one["spec"]["workerGroupSpecs"]
        if head["rayStartParams"].get("num-cpus") != "0":
            yield f"{title(one)}: the head has work to do"
        if one["spec"].get("authOptions") != {"mode": "token"}:
            yield f"{title(one)}: whoever reaches Ray may run code"
        for pod in [pod for pod in rendered.pods() if pod.kind == "RayCluster"]:
            variables = {each["name"]: each.get("value") for each in pod.containers()[0]["env"]}
            if int(variables.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60")) < 3_600:
                yield f"{title(one)}: {pod.component} ends soon after the head"
        command = [
            word
            for pod in rendered.pods()
            if pod.component == "supervisor"
            for word in pod.containers()[0]["command"]
        ]
        count = sum(group["replicas"] for group in groups)
        if f"--shard-servers={count}" not in command:
            yield f"{title(one)} has {count} pods for shard servers, the supervisor does not"
        for group in groups:
            # KubeRay puts it into a line for a shell.
            words = shlex.split(group["rayStartParams"].get("resources", ""))
            if words != ['{"shard_server": 1}']:
                yield f"{title(one)}: {group['groupName']} does not host one shard server a pod"
        service = f"--ray-address=ray://{one['metadata']['name']}-head-svc:10001"
        if service not in command:
            yield f"{title(one)}: the supervisor looks for Ray elsewhere"


def policies_let_through_what_must(rendered: Rendered) -> Iterator[str]:
    if not rendered.of("NetworkPolicy"):
        return
    for one in rendered.of("NetworkPolicy"):
        component = one["spec"]["podSelector"]["matchLabels"].get(_COMPONENT)
        open_ = [rule for rule in one["spec"].get("ingress", []) if not rule.get("from")]
        if open_ and component != "router":
            yield f"{title(one)} lets everybody in"
    for pod in rendered.pods():
        policies = [one for one in rendered.of("NetworkPolicy") if _applies(one, pod)]
        if [one["spec"]["policyTypes"] for one in policies] != [["Ingress", "Egress"]]:
            yield f"{pod.owner} is under {len(policies)} network policies"
    ways = {
        ("client", "router", 6333), ("client", "router", 6334), ("router", "shard", 6340),
        ("supervisor", "head", 10_001), ("shard", "head", 6_379), ("head", "shard", 6_380),
        ("shard", "shard", 12_345),
    }  # fmt: skip
    components = {pod.component for pod in rendered.pods()}
    if missing := {one for way in ways for one in way[:2]} - components:
        yield f"there are no pods of {sorted(missing)}"
        return
    probed = {(a, b, port) for a in components for b in components for _, _, port in ways}
    for way in sorted(probed):
        source, target = rendered.pod(way[0]), rendered.pod(way[1])
        passes = _passes(rendered, "egress", "to", source, target, way[2]) and _passes(
            rendered, "ingress", "from", target, source, way[2]
        )
        among_ray = {way[0], way[1]} <= {"head", "shard"}
        open_to_all = target.component == "router" and way[2] in (6333, 6334)
        if way in ways and not passes:
            yield f"{way} does not pass"
        if passes and way not in ways and not among_ray and not open_to_all:
            yield f"{way} passes"


def _passes(
    rendered: Rendered, rules: str, peers: str, at: PodTemplate, other: PodTemplate, port: int
) -> bool:
    return any(
        (not rule.get("ports") or any(one.get("port") == port for one in rule["ports"]))
        and (
            not rule.get(peers)
            or any(
                _matches(peer["podSelector"]["matchLabels"], other.labels)
                for peer in rule[peers]
                if "podSelector" in peer
            )
        )
        for one in rendered.of("NetworkPolicy")
        if _applies(one, at)
        for rule in one["spec"].get(rules, [])
    )


def _applies(policy: Object, pod: PodTemplate) -> bool:
    return _matches(policy["spec"]["podSelector"]["matchLabels"], pod.labels)


def traces_arrive(rendered: Rendered) -> Iterator[str]:
    """Of all that has part in a request, or of nothing."""
    serving = [pod for pod in rendered.pods() if pod.component in ("router", "shard")]
    endpoints = [
        next(
            (one["value"] for one in pod.containers()[0].get("env", []) if one["name"] == _OTLP), ""
        )
        for pod in serving
    ]
    if len(set(endpoints)) > 1:
        yield f"traces go different ways: {endpoints}"
    for pod, endpoint in zip(serving, endpoints, strict=True):
        rules = [
            rule
            for one in rendered.of("NetworkPolicy")
            if _applies(one, pod)
            for rule in one["spec"].get("egress", [])
        ]
        ports = [one["port"] for rule in rules if "to" not in rule for one in rule["ports"]]
        if endpoint and rules and urlsplit(endpoint).port not in ports:
            yield f"{pod.owner}: its traces do not pass"


def routers_ask_for_a_key_or_say_that_they_do_not(rendered: Rendered) -> Iterator[str]:
    router = next(pod.containers()[0] for pod in rendered.pods() if pod.owner.endswith("-router"))
    from_secret = {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in router.get("env", [])
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    key = from_secret.get("SHOAL_API_KEY")
    if ("--allow-anonymous" in router["command"]) == (key is not None):
        yield "the routers neither ask for a key nor say so, or both"
    if key is not None and key.get("optional"):
        yield "the routers' key may be missing"
    if "SHOAL_ALT_API_KEY" in from_secret and not from_secret["SHOAL_ALT_API_KEY"]["optional"]:
        yield "the routers want a second key"


def clients_and_routers_agree_on_tls(rendered: Rendered) -> Iterator[str]:
    routers = [pod for pod in rendered.pods() if pod.owner.endswith("-router")]
    tls = any("--tls-cert=" in one for one in routers[0].containers()[0]["command"])
    scheme = "https" if tls else "http"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = routers[0].containers()[0].get(kind, {})
        if tls and "httpGet" not in probe:
            yield f"{routers[0].owner}: Kubernetes cannot ask by TLS: {kind}"
        if "httpGet" in probe and probe["httpGet"].get("scheme", "HTTP") != scheme.upper():
            yield f"{routers[0].owner}: {kind} speaks another scheme"
    for service in rendered.of("Service"):
        wanted = {"https"} if tls else {"http", "kubernetes.io/h2c"}
        if {port["appProtocol"] for port in service["spec"]["ports"]} != wanted:
            yield f"{title(service)} is said to speak something else"
    for monitor in rendered.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint.get("scheme", "http") != scheme or tls != ("tlsConfig" in endpoint):
                yield f"{title(monitor)} speaks another scheme"
    for pod in rendered.pods():
        for container in pod.containers() if pod.component == "client" else ():
            name = f"{pod.owner}, {container['name']}"
            urls = re.findall(
                r"\bhttps?(?=://[a-z][a-z0-9-]*:6333)", " ".join(container["command"])
            )
            if set(urls) != {scheme}:
                yield f"{name} speaks another scheme"
            trusted = {one["name"]: one.get("value") for one in container.get("env", [])}
            if tls != ("SSL_CERT_FILE" in trusted):
                yield f"{name} does not know the routers"
        for volume in pod.spec.get("volumes", []):
            whole = "secret" in volume and "items" not in volume["secret"]
            if pod.component == "client" and whole:
                yield f"{pod.owner} is given the routers' key"


def queries_are_promql(rendered: Rendered) -> Iterator[str]:
    queries = [
        (title(one), rule["expr"])
        for one in rendered.of("PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "expr" in rule
    ]
    for one in rendered.of("ConfigMap"):
        for panel in json.loads(one["data"]["shoal.json"])["panels"]:
            queries += [(title(one), target["expr"]) for target in panel["targets"]]
    for where, query in queries:
        try:
            promql_parser.parse(query.replace("$__rate_interval", "5m"))
        except ValueError as error:
            yield f"{where}: {query}: {error}"


CHECKS: Sequence[Callable[[Rendered], Iterator[str]]] = (
    schemas,
    names_are_unique_and_valid,
    containers_are_confined,
    containers_are_sized,
    containers_are_probed,
    pods_stop_in_order,
    images_are_of_this_version,
    volumes_are_mounted,
    secrets_are_referred_to,
    references_lead_somewhere,
    grpc_is_let_in,
    selectors_find_pods,
    pods_are_spread,
    commands_are_shoals,
    ray_outlives_its_head,
    policies_let_through_what_must,
    traces_arrive,
    routers_ask_for_a_key_or_say_that_they_do_not,
    clients_and_routers_agree_on_tls,
    queries_are_promql,
)


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(wanted) and wanted.items() <= labels.items()
