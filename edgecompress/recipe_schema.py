"""The published JSON Schema of recipes, with the options of all installed passes."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import TypeAdapter

from edgecompress.graph_pass import Pass, pass_class, pass_names
from edgecompress.recipe import Recipe

__all__ = ["schema", "pass_schema", "attribute_docs"]


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe in TOML, JSON or YAML."""
    root = Recipe.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = root.pop("$defs", {})
    steps = []
    for name in pass_names():
        step = pass_schema(pass_class(name))
        definitions.update(step.pop("$defs", {}))
        definitions[f"pass_{name}"] = step
        steps.append({"$ref": f"#/$defs/pass_{name}"})
    for definition in (root, *definitions.values()):
        _spread_docs(definition)
    for table in (root, definitions["CandidateSpec"]):
        table["properties"]["pass"]["items"] = {"oneOf": steps}
    metric = root["properties"]["metric"]
    metric["anyOf"] = [{"type": "string"}, *metric["anyOf"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgecompress recipe",
        **{key: value for key, value in root.items() if key != "title"},
        "$defs": dict(sorted(definitions.items())),
    }


def pass_schema(cls: type[Pass]) -> dict[str, Any]:
    """JSON Schema of one ``[[pass]]`` table, with descriptions from the docstrings."""
    step = TypeAdapter(cls).json_schema()
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs.update(attribute_docs(base.__doc__ or "")[1])
    for option, definition in step["properties"].items():
        definition.pop("title", None)
        if option in docs:
            definition["description"] = docs[option]
    own = {k: v for k, v in step["properties"].items() if k not in ("ops", "nodes")}
    scoped = {
        "anyOf": [
            {"const": False},
            {"type": "object", "properties": own, "additionalProperties": False},
        ]
    }
    for level in ("ops", "nodes"):
        step["properties"][level]["additionalProperties"] = scoped
    step["properties"] = {"name": {"const": cls.name}, **step["properties"]}
    step["required"] = ["name", *step.get("required", [])]
    step["additionalProperties"] = False
    step["description"] = attribute_docs(cls.__doc__ or "")[0]
    step["title"] = cls.name
    return step


def _spread_docs(definition: dict[str, Any]) -> None:
    """Move the docstring's ``Attributes:`` section to the properties that it speaks of."""
    summary, docs = attribute_docs(definition.get("description", ""))
    if summary:
        definition["description"] = summary
    for name, property_ in definition.get("properties", {}).items():
        property_.pop("title", None)
        text = docs.get("passes" if name == "pass" else name)
        if text and "description" not in property_:
            property_["description"] = text


def attribute_docs(docstring: str) -> tuple[str, dict[str, str]]:
    """First paragraph of a Google-style docstring, and the texts of its ``Attributes:``."""
    lines = inspect.cleandoc(docstring).splitlines()
    summary = " ".join("\n".join(lines).split("\n\n")[0].split())
    docs: dict[str, str] = {}
    if "Attributes:" not in lines:
        return summary, docs
    current = ""
    for line in lines[lines.index("Attributes:") + 1 :]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        if indent == 4:
            current, _, text = line.strip().partition(":")
            current = current.split(" ")[0]
            docs[current] = text.strip()
        elif line.strip():
            docs[current] = f"{docs[current]} {line.strip()}".strip()
    return summary, docs
