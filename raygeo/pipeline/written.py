"""Settings as they are written: YAML as plain data, and the lines that its parts stand in."""

from collections.abc import Sequence
from typing import Any

import yaml

_MERGE, _BOOL, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
_WORDS = frozenset({"on", "off", "yes", "no"})
"""Truth values of YAML 1.1 that YAML 1.2 reads as texts; no key of a mapping is meant to be one."""
_MOST_MERGED, _MOST_NESTED = 10_000, 64


class Lines:
    """The lines of a YAML text that ``read_yaml`` can read, by the places of what stands in them."""

    def __init__(self, text: str):
        self._root: yaml.Node | None = yaml.compose(text, _Loader)

    def of(self, location: Sequence[int | str]) -> int:
        """The line, from 1, of the key or entry at ``location``, or of the nearest part above it that is written."""
        return self._find(location)[0]

    def has(self, location: Sequence[int | str]) -> bool:
        """Whether something is written at ``location``."""
        return self._find(location)[1]

    def _find(self, location: Sequence[int | str]) -> tuple[int, bool]:
        node, line = self._root, 1
        for part in location:
            pairs: list[tuple[yaml.Node, yaml.Node]] = []
            if isinstance(node, yaml.MappingNode):
                pairs = [pair for pair in node.value if pair[0].value == str(part)]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                pairs = [(entry, entry) for entry in node.value[part : part + 1]]
            if not pairs:
                return line, False
            key, node = pairs[0]
            line = key.start_mark.line + 1
        return line, True


class _Loader(yaml.SafeLoader):
    """Reads the keys ``on``, ``off``, ``yes`` and ``no`` as texts, and refuses a mapping with a key twice, of which
    YAML's own loader takes the last in silence.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
                continue
            if key_node.tag == _BOOL and key_node.value.lower() in _WORDS:
                key_node.tag = _TEXT
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                where = f"in line {lines[key]} and again in line {line}"
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands {where}; keep one of them")
            lines[key] = line
        return node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= _MOST_NESTED:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_NESTED} lists or mappings stand in each other")
        super().fetch_flow_collection_start(TokenClass)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            raise yaml.MarkedYAMLError(problem=f"merges (<<) make more than {_MOST_MERGED:,} keys of one mapping")


def read_yaml(text: str) -> Any:
    """Read YAML as plain data. Raises ``yaml.YAMLError``, naming both lines of a key that occurs twice."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.YAMLError("lists and mappings stand too deep in each other") from error
    except Exception as error:  # of a constructor, which lets through what it cannot read
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
