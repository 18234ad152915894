"""The configuration files of docs/serving: they parse, and they agree with each other and with the server here."""

import re
from pathlib import Path

import pytest
import yaml

from dlkit.export.server import Options, _metrics

FOLDER = Path(__file__).parents[2] / "docs" / "serving"


def read(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def documents(name):
    return list(yaml.safe_load_all(read(name)))


def test_the_model_configuration_is_what_the_proto_says():
    pytest.importorskip("tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(read("models.config"), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def messages():
    """BatchingParameters and MonitoringConfig, whose protos are in no package: their fields by number and type."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", syntax="proto3", package="serving")
    file.dependency.append("google/protobuf/wrappers.proto")
    field = descriptor_pb2.FieldDescriptorProto
    batching = file.message_type.add(name="BatchingParameters")
    for number, name in enumerate(
        ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"), 1
    ):
        batching.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, label=1, type_name=".google.protobuf.Int64Value"
        )
    batching.field.add(name="enable_large_batch_splitting", number=8, type=field.TYPE_BOOL, label=1)
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=field.TYPE_BOOL, label=1)
    prometheus.field.add(name="path", number=2, type=field.TYPE_STRING, label=1)
    monitoring = file.message_type.add(name="MonitoringConfig")
    monitoring.field.add(
        name="prometheus_config", number=1, type=field.TYPE_MESSAGE, label=1, type_name=".serving.PrometheusConfig"
    )
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving.{name}")) for name in
            ("BatchingParameters", "MonitoringConfig")}  # fmt: skip


def test_batching_and_monitoring_are_protobuf_text_with_the_values_of_the_local_server():
    from google.protobuf import text_format

    options = Options(FOLDER)
    inside = documents("kubernetes.yaml")[0]["data"]
    for batching in (read("batching.config"), inside["batching.config"]):
        found = text_format.Parse(batching, messages()["BatchingParameters"]())
        assert found.max_batch_size.value == options.max_batch
        assert found.batch_timeout_micros.value == 1e6 * options.batch_timeout
        assert found.enable_large_batch_splitting
    for monitoring in (read("monitoring.config"), inside["monitoring.config"]):
        found = text_format.Parse(monitoring, messages()["MonitoringConfig"]())
        assert found.prometheus_config.enable
        assert found.prometheus_config.path == _metrics.PATH


def test_compose_mounts_what_its_command_names_and_listens_on_this_machine_only():
    (compose,) = documents("docker-compose.yml")
    serving = compose["services"]["serving"]
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in serving["volumes"]}
    assert (FOLDER / mounts["/models"]).resolve() == FOLDER.parents[1] / "saved_models"
    for argument in serving["command"]:
        if "=/config/" in argument:
            assert (FOLDER / mounts["/config"] / argument.split("/config/")[1]).is_file()
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    (prometheus,) = documents("prometheus.yml")
    assert prometheus["scrape_configs"][0]["metrics_path"] == _metrics.PATH
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["serving:8501"]
    assert all((FOLDER / name).is_file() for name in prometheus["rule_files"])


def test_the_alerts_read_metrics_that_the_local_server_has_too():
    pytest.importorskip("prometheus_client")
    metrics = _metrics.Metrics()
    metrics.request("digits", "Predict", "REST", "OK", 0.01)
    page = metrics.page().decode()
    (alerts,) = documents("alerts.yml")
    named = set(re.findall(r":tensorflow:serving:\w+", read("alerts.yml")))
    assert named == {":tensorflow:serving:request_count", ":tensorflow:serving:request_latency_bucket"}
    assert all(f"{name}{{" in page for name in named)
    assert len(alerts["groups"][0]["rules"]) == 3


def test_the_manifest_ties_its_parts_together_and_runs_without_privileges():
    kinds = {document["kind"]: document for document in documents("kubernetes.yaml")}
    assert set(kinds) == {"ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    pod = kinds["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"].items() >= kinds["Service"]["spec"]["selector"].items()
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == kinds["Service"]["spec"]["selector"]
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
    config = set(kinds["ConfigMap"]["data"])
    assert {argument.split("/config/")[1] for argument in container["args"] if "/config/" in argument} == config
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {f"--rest_api_port={ports['rest']}", f"--port={ports['grpc']}"} <= set(container["args"])
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} == set(ports)
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
