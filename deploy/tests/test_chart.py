"""The Helm chart: linted, rendered for three installations, valid Kubernetes, true to the code.

`make chart` installs helm and kubeconform (by Go) and runs these; without them they are skipped.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from argparse import ArgumentParser
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from detection.engines import server
from gateway_project.core.stores import queues
from gateway_project.server import __main__, web_process
from gateway_project.tests.test_settings import names_read

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/chart"
SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*.yaml"))
HELM, KUBECONFORM = shutil.which("helm"), shutil.which("kubeconform")
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is missing: `make chart` installs it")
needs_kubeconform = pytest.mark.skipif(
    KUBECONFORM is None, reason="kubeconform is missing: `make chart` installs it"
)
KUBERNETES = "1.30.0"  # a helm that Go built takes itself for a very old one
DEFINITIONS = "v1.30.0-local-strict/_definitions.json"
REFERENCE = "/api/_definitions.json#/"
MAKERS = ("Deployment", "StatefulSet", "Job", "CronJob")
OPERATORS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
"""Of the Prometheus operator, whose schemas are not Kubernetes' own."""


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert HELM
    return subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@cache
def rendered(name: str) -> tuple[dict[str, Any], ...]:
    values = CHART / f"ci/{name}-values.yaml"
    done = helm("template", "gw", CHART, "--kube-version", KUBERNETES, "--values", values)
    assert done.returncode == 0, done.stderr
    return tuple(one for one in yaml.safe_load_all(done.stdout) if one)


def of(name: str, kind: str) -> dict[str, dict[str, Any]]:
    return {x["metadata"]["name"]: x for x in rendered(name) if x["kind"] == kind}


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Pod specs by the name of what makes them."""
    makers = {x["metadata"]["name"]: x["spec"] for x in rendered(name) if x["kind"] in MAKERS}
    jobs = {key: spec.get("jobTemplate", {}).get("spec", spec) for key, spec in makers.items()}
    return {key: spec["template"]["spec"] for key, spec in jobs.items()}


def ours(name: str) -> dict[str, dict[str, Any]]:
    """Those that run the gateway's image."""
    return {
        key: spec
        for key, spec in pods(name).items()
        if spec["containers"][0]["image"].startswith("gateway:")
    }


def environment(name: str) -> dict[str, str]:
    """Of the web processes: what is said plainly."""
    env = pods(name)["gw-web"]["containers"][0]["env"]
    return {entry["name"]: entry["value"] for entry in env if "value" in entry}


def test_there_are_three_sets() -> None:
    assert SETS == ["external", "large", "small"]


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_helm_lints_it_strictly(name: str) -> None:
    done = helm("lint", "--strict", CHART, "--values", CHART / f"ci/{name}-values.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kubernetes' schemas of the kinds that the chart makes, none of which refers to another."""
    [some] = [f for f in files("kubernetes-validate") or [] if str(f).endswith(DEFINITIONS)]
    source = Path(str(some.locate()))
    definitions = source.read_text().replace(REFERENCE, "#/")
    folder = tmp_path_factory.mktemp("schemas")
    kinds = {(x["apiVersion"], x["kind"].lower()) for name in SETS for x in rendered(name)}
    for version, kind in kinds:
        group = version.replace(".k8s.io", "").replace("/", "-")
        path = source.with_name(f"{kind}-{group}.json")
        if path.exists():
            schema = json.loads(path.read_text().replace(REFERENCE, "#/"))
            schema["$defs"] = json.loads(definitions)["$defs"]
            (folder / path.name).write_text(json.dumps(schema))
    return folder


@pytest.mark.slow
@needs_helm
@needs_kubeconform
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_takes_it(name: str, schemas: Path) -> None:
    text = yaml.safe_dump_all(rendered(name))
    done = subprocess.run(
        [
            *(str(KUBECONFORM), "-strict", "-summary", "-skip", ",".join(OPERATORS)),
            *("-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", "-"),
        ],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ours = sum(one["kind"] not in OPERATORS for one in rendered(name))
    assert f"Valid: {ours}, Invalid: 0, Errors: 0" in done.stdout


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_every_setting_that_it_sets_exists(name: str) -> None:
    for spec in ours(name).values():
        for container in spec["containers"]:
            # Another release would change a ConfigMap below old pods.
            assert not [one for one in container.get("envFrom", ()) if "configMapRef" in one]
            first, *entries = container["env"]
            assert first["name"] == "POD_IP"  # a later one would not be known
            named = [entry["name"].removesuffix("_FILE") for entry in entries]
            assert set(named) <= names_read(), sorted(set(named) - names_read())
            assert len(named) == len(set(named)), "said twice"
            assert all(isinstance(entry["value"], str) for entry in entries)


@needs_helm
def test_numbers_stay_what_they_are() -> None:
    """A template has each of them as a float: 5.36870912e+08."""
    settings = yaml.safe_load((CHART / "ci/large-values.yaml").read_text())["settings"]
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        assert environment("large")[name] == text, name
    done = helm(
        *("template", "gw", CHART, "--kube-version", KUBERNETES),
        *("--values", CHART / "ci/large-values.yaml", "--set-json"),
        "migrate.deadlineSeconds=9000000,workers.webhooks.autoscaling.messagesPerPod=9000000",
    )
    assert done.returncode == 0, done.stderr
    assert "e+" not in done.stdout.partition("kind: PrometheusRule")[0]


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_each_queue_is_taken(name: str) -> None:
    taken = [
        queue
        for key, deployment in of(name, "Deployment").items()
        if "-worker-" in key and deployment["spec"].get("replicas", 1)
        for argument in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--queues=")
        for queue in argument.removeprefix("--queues=").split(",")
    ]
    assert sorted(taken) == sorted(queues.NAMES)


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_pods_have_no_rights_and_write_nowhere(name: str) -> None:
    for key, spec in pods(name).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, key
        assert spec["automountServiceAccountToken"] is False, key
        for container in spec["containers"]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] is True, key
            assert allowed["allowPrivilegeEscalation"] is False, key
            assert allowed["capabilities"] == {"drop": ["ALL"]}, key
            assert container["resources"]["limits"]["memory"], key


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_copies_of_mails_lie_on_disk(name: str) -> None:
    """Any of them may be larger than what a pod has of memory."""
    for key, spec in ours(name).items():
        [folder] = [one["emptyDir"] for one in spec["volumes"] if one["name"] == "tmp"]
        assert (folder.get("medium") != "Memory") is (key == "gw-web"), key
        assert folder["sizeLimit"]


@needs_helm
@pytest.mark.parametrize("name", SETS)
def test_no_secret_is_in_it(name: str) -> None:
    assert not of(name, "Secret")
    for spec in ours(name).values():
        for container in spec["containers"]:
            for entry in container["env"]:
                if entry["name"].endswith("_FILE"):
                    assert entry["value"].startswith("/run/secrets/gateway/")


@needs_helm
def test_the_engine_has_no_secret_and_asks_nobody() -> None:
    spec = pods("large")["gw-engine"]
    [container] = spec["containers"]
    assert not [one for one in container["env"] if one["name"].endswith("_FILE")]
    assert "secrets" not in {one["name"] for one in (*spec["volumes"], *container["volumeMounts"])}
    policies = of("large", "NetworkPolicy")
    assert policies["gw-engine"]["spec"]["egress"] == []
    [left_out] = policies["gw"]["spec"]["podSelector"]["matchExpressions"]
    assert (left_out["operator"], left_out["values"]) == ("NotIn", ["engine"])


@needs_helm
def test_the_engine_has_a_classifier_where_one_is_named() -> None:
    spec, small = (pods(name)["gw-engine"] for name in ("large", "small"))
    [container] = spec["containers"]
    role, *arguments = container["args"]
    parser = ArgumentParser()
    server.add_arguments(parser)
    options = parser.parse_args(arguments)
    assert (role, options.model, options.threads) == ("engine", "/models/guard", 2)
    assert options.calibration == "/models/guard/calibration.json"
    claim = {"claimName": "models", "readOnly": True}
    assert {"name": "models", "persistentVolumeClaim": claim} in spec["volumes"]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "models"]
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert container["startupProbe"]["failureThreshold"] * 2 >= 60
    assert small["containers"][0]["args"] == ["engine", "--threads=1"]
    assert "models" not in {one["name"] for one in small["volumes"]}


def document() -> str:
    return (ROOT / "docs/kubernetes.md").read_text().replace("\\\n", "")


def shown() -> list[str]:
    """The values that the document's command sets."""
    [command] = re.findall(r"^helm install .*$", document(), re.M)
    words = shlex.split(command)
    return [word for at, word in enumerate(words) if word == "--set" or words[at - 1] == "--set"]


@needs_helm
def test_the_command_of_the_document_reaches_its_stores() -> None:
    done = helm("template", "gw", CHART, "--kube-version", KUBERNETES, *shown())
    assert done.returncode == 0, done.stderr
    [policy] = [
        one
        for one in yaml.safe_load_all(done.stdout)
        if one and (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "gw")
    ]
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}
    assert {5432, 6379} <= ports


def test_helm_waits_for_the_migrations_as_long_as_they_may_take() -> None:
    """By itself it gives up after five minutes."""
    migrate = yaml.safe_load((CHART / "values.yaml").read_text())["migrate"]
    commands = re.findall(r"helm (?:install|upgrade) .*$", document(), re.M)
    assert len(commands) >= 2
    for command in commands:
        [minutes] = re.findall(r"--timeout (\d+)m", command)
        assert int(minutes) * 60 > migrate["deadlineSeconds"], command


@needs_helm
def test_a_pod_has_time_to_stop() -> None:
    web = pods("large")["gw-web"]
    drain = float(environment("large")["DRAIN_SECONDS"])
    stop = drain + web_process.LINGER_SECONDS + __main__.GRACEFUL_SECONDS
    assert stop + 10 <= web["terminationGracePeriodSeconds"]
    probe = web["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < drain
    paths = {
        web["containers"][0][f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert paths == {"/health/live", "/health/ready"}


@needs_helm
def test_beat_is_one_and_migrations_come_first() -> None:
    beat = of("large", "Deployment")["gw-beat"]
    assert (beat["spec"]["replicas"], beat["spec"]["strategy"]) == (1, {"type": "Recreate"})
    job = of("large", "Job")["gw-migrate"]
    hooks = job["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "pre-install,pre-upgrade"


@needs_helm
@pytest.mark.parametrize(
    ("options", "name"), [([], "gw-migrate-1"), (["--is-upgrade"], "gw-migrate")], ids=str
)
def test_with_stores_inside_the_first_installation_migrates_beside_them(
    options: list[str], name: str
) -> None:
    """When its hooks run there is no database yet; on upgrades there is."""
    values = CHART / "ci/small-values.yaml"
    done = helm(
        *("template", "gw", CHART, "--kube-version", KUBERNETES, "--values", values), *options
    )
    [job] = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Job"]
    assert job["metadata"]["name"] == name
    assert ("annotations" in job["metadata"]) is (name == "gw-migrate")


@needs_helm
def test_it_grows_by_cpu_and_by_what_waits() -> None:
    metrics = {
        name: [one["type"] for one in x["spec"]["metrics"]]
        for name, x in of("large", "HorizontalPodAutoscaler").items()
    }
    assert metrics == {
        "gw-web": ["Resource"],
        "gw-worker-detection": ["External"],
        "gw-worker-webhooks": ["External"],
    }
    for name in metrics:  # else each deployment would take the replicas back
        assert "replicas" not in of("large", "Deployment")[name]["spec"]


@needs_helm
def test_sockets_and_addresses_come_through_the_ingress() -> None:
    ingress = of("external", "Ingress")["gw"]
    timeout = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    assert int(timeout) > settings.ROBIN_LIST_TIMEOUT_SECONDS
    assert environment("external")["TRUSTED_PROXY_HOPS"] == "2"


@needs_helm
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("web.replicas=-1", "replicas"),
        ("secret.keys={SECRET_KEY}", "keys"),
        ("workers.rest.queues={nonsense}", "queues"),
        ("host=https://gateway.example", "host"),
        ("ingres.enabled=true", "ingres"),
        ("engine.enabled=false,networkPolicy.enabled=false", "engine.url"),
        ("host=gateway.example", "networkPolicy.storesCIDRs"),
        ("backup.enabled=true,networkPolicy.enabled=false", "backup.to"),
        ("monitoring.enabled=true,networkPolicy.enabled=false", "monitoring.runbooks"),
    ],
)
def test_values_that_cannot_be_right_are_refused(values: str, words: str) -> None:
    done = helm("template", "gw", CHART, "--kube-version", KUBERNETES, "--set", values)
    assert done.returncode != 0
    assert words in done.stderr


@needs_helm
def test_alerts_lead_to_the_runbook_of_the_installation() -> None:
    [rules] = of("large", "PrometheusRule").values()
    alerts = [one for group in rules["spec"]["groups"] for one in group["rules"] if "alert" in one]
    for alert in alerts:
        url, _, paragraph = alert["annotations"]["runbook_url"].partition("#")
        assert url == "https://git.internal.example/gateway/runbooks.md"
        assert paragraph == alert["alert"].lower()
    assert len(alerts) > 10


def test_its_rules_are_those_of_the_monitoring() -> None:
    for path in (ROOT / "deploy/monitoring/rules").glob("*.yml"):
        assert (CHART / "rules" / path.name).read_text() == path.read_text(), (
            f"cp {path.relative_to(ROOT)} deploy/chart/rules/"
        )


def test_its_version_is_that_of_the_code() -> None:
    from gateway_project import __version__

    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_the_schema_knows_each_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, value in values.items():
        known = schema["properties"][name].get("properties")
        if known:
            assert set(value) <= set(known), name


def test_the_exporter_of_workers_exists() -> None:
    text = (CHART / "templates/workers.yaml").read_text()
    [module] = re.findall(r"-m, ([\w.]+),", text)
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
