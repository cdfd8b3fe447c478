import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_cluster_yaml_fits_rays_schema():
    jsonschema.validate(CLUSTER, SCHEMA)


def test_the_schema_would_refuse_a_misspelt_key():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CLUSTER | {"max_worker": 1}, SCHEMA)


def test_the_head_takes_no_training():
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
