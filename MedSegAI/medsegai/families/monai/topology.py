"""The topology of a DiNTS in a bundle, which the configuration loads from a file beside the weights.

Such a configuration contains `arch_ckpt: $torch.load(@arch_ckpt_path, ...)`, and uses items of it. The expressions
are compared with this form, and the file is read as data.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medsegai.families.monai.components import Component
from medsegai.families.monai.configuration import SEPARATOR, Configuration
from medsegai.models.json_fields import shown
from medsegai.networks.monai_networks import TOPOLOGY
from medsegai.networks.topologies import read_topology

_ITEM = re.compile(
    r"\$\s*(?:torch\.from_numpy\()?@(\w+)\[(['\"])(\w+)\2\](?:\.cpu\(\)|\.numpy\(\))*\)?\s*"
)

_LOADED = re.compile(
    r"\$\s*torch\.load\(\s*(@\w+|'[^']*'|\"[^\"]*\")\s*(?:,[^@]*)?\)\s*", re.DOTALL
)


def topology_of(component: Component, folder: Path) -> dict[str, Any]:
    """Return the arguments `dints_space` and `node_a` of a DiNTS with the codes from the file.

    Args:
        component: the network.
        folder: the folder of the files of weights.

    Raises:
        ModelError: the configuration has another form, or the file is missing or damaged.
    """
    configuration = component.configuration
    space = Component.at(configuration, f"{component.place}{SEPARATOR}{TOPOLOGY}")
    if space.target.rpartition(".")[2] != "TopologyInstance":
        raise space.unknown("not a supported topology", "supported is TopologyInstance")
    found = {
        name: space.value(name) for name in sorted(space.names() - {"arch_code", "device", "cell"})
    }
    place = configuration.followed(f"{space.place}{SEPARATOR}arch_code")
    found["arch_code"] = [
        _codes(configuration, f"{place}{SEPARATOR}{number}", folder) for number in (0, 1)
    ]
    nodes = f"{component.place}{SEPARATOR}node_a"
    if nodes not in configuration:
        return {TOPOLOGY: found}
    return {TOPOLOGY: found, "node_a": _codes(configuration, nodes, folder)}


def _codes(configuration: Configuration, name: str, folder: Path) -> Any:
    """Return the codes that an entry reads from a file."""
    raw = configuration.raw(configuration.followed(name))
    if not isinstance(raw, str):
        return raw
    item = _ITEM.fullmatch(raw)
    loaded = _LOADED.fullmatch(str(configuration.raw(item[1]))) if item else None
    if item is None or loaded is None:
        raise configuration.refused(
            name,
            f"{shown(raw)} would have to be run",
            "only an item of what torch.load reads from a file of the bundle is understood",
        )
    text = loaded[1]
    path = configuration.value(text[1:]) if text[0] == "@" else text[1:-1]
    codes = read_topology(folder / Path(str(path).replace("\\", "/")).name)
    if item[3] not in codes:
        raise configuration.wrong(name, f"its file has no codes {item[3]!r}")
    return codes[item[3]]
