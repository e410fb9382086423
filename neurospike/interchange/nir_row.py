"""Bring the nodes of a NIR graph into a row, with recurrent weights kept beside their neurons.

Sub-graphs are flattened first, so that a recurrent layer is found whether it is a graph of its own,
as most libraries write it, or a loop in the outer graph.
"""

from dataclasses import dataclass
from typing import Any

from neurospike.errors import InterchangeError

Edges = list[tuple[str, str]]
LEAKS = ("I", "LI", "CubaLI")
NEURONS = (*LEAKS, "IF", "LIF", "CubaLIF")
DENSE = ("Affine", "Linear")
PASSING = ("Input", "Output", "Identity")


@dataclass
class Place:
    """A node in the row.

    graph: name of the sub-graph that it was in, "" for the outer graph. threshold: the `Threshold`
    node that follows a leaky integrator, or None. back: the node of the weights that feed its
    spikes back, or None.
    """

    name: str
    node: Any
    graph: str = ""
    threshold: Any = None
    back: Any = None

    @property
    def title(self) -> str:
        """The name of its layer."""
        return self.name.replace(".", "_")

    @property
    def kind(self) -> str:
        """The node's type."""
        return type(self.node).__name__


def row_of(graph: Any, through_weights: bool = False) -> list[Place]:
    """Return the nodes from the input to the output.

    through_weights: in the file, the input of a recurrent layer leads to its recurrent weights, as
    spyx writes it, although it is meant for the neurons.

    Raises:
        InterchangeError: a graph that branches, has several inputs or outputs, or has a loop other
            than spikes fed back to their neurons through weights.
    """
    places, edges = _opened(graph, "")
    edges = _joined(places, list(dict.fromkeys(edges)))
    edges = _loops(places, edges, through_weights)
    return _in_a_row(places, edges)


def _opened(graph: Any, within: str) -> tuple[dict[str, Place], Edges]:
    """Return the places and edges of a graph and of its sub-graphs, flattened."""
    places: dict[str, Place] = {}
    edges: Edges = []
    enters, leaves = {}, {}
    for key, node in graph.nodes.items():
        name = f"{within}.{key}" if within else key
        enters[key] = leaves[key] = name
        if type(node).__name__ != "NIRGraph":
            places[name] = Place(name, node, within)
            continue
        inside, between = _opened(node, name)
        places |= inside
        edges += between
        enters[key] = _only(node, "Input", name)
        leaves[key] = _only(node, "Output", name)
    for start, end in graph.edges:
        if start not in leaves or end not in enters:
            missing = end if start in leaves else start
            raise InterchangeError(f"an edge names the node {missing}, which is not in the graph")
        edges.append((leaves[start], enters[end]))
    return places, edges


def _only(graph: Any, kind: str, name: str) -> str:
    found = [key for key, node in graph.nodes.items() if type(node).__name__ == kind]
    if len(found) != 1:
        raise InterchangeError(
            f"the graph {name} has {len(found)} {kind} nodes; from_nir takes one"
        )
    return f"{name}.{found[0]}"


def _before(edges: Edges, name: str) -> list[str]:
    return [start for start, end in edges if end == name]


def _after(edges: Edges, name: str) -> list[str]:
    return [end for start, end in edges if start == name]


def _joined(places: dict[str, Place], edges: Edges) -> Edges:
    """Merge each threshold into the place of the leaky integrator that alone leads to it."""
    for name in [key for key, place in places.items() if place.kind == "Threshold"]:
        before = _before(edges, name)
        if len(before) != 1 or places[before[0]].kind not in LEAKS:
            continue
        leak = before[0]
        if _after(edges, leak) != [name]:
            continue
        places[leak].threshold = places.pop(name).node
        rest = [edge for edge in edges if edge != (leak, name)]
        edges = [(leak if start == name else start, end) for start, end in rest]
    return edges


def _loops(places: dict[str, Place], edges: Edges, through_weights: bool) -> Edges:
    """Merge weights that feed spikes back into the place of their neurons."""
    for name in [key for key, place in places.items() if place.kind in DENSE]:
        after = _after(edges, name)
        if len(after) != 1 or places[after[0]].kind not in NEURONS:
            continue
        neurons = after[0]
        before = _before(edges, name)
        if neurons not in before:
            continue
        others = [one for one in before if one != neurons]
        if others and not through_weights:
            raise InterchangeError(
                f"the input of the recurrent layer around {neurons} leads through its weights "
                f"{name}; if spyx wrote the file, which means the neurons, say written_by='spyx'"
            )
        places[neurons].back = places.pop(name).node
        edges = [edge for edge in edges if name not in edge]
        edges += [(one, neurons) for one in others]
    return edges


def _in_a_row(places: dict[str, Place], edges: Edges) -> list[Place]:
    starts = [name for name, place in places.items() if not _before(edges, name)]
    if len(starts) != 1:
        raise InterchangeError(
            f"the graph begins at {len(starts)} nodes ({', '.join(starts)}); from_nir reads nodes "
            "in a row, from one input to one output"
        )
    row, name = [places[starts[0]]], starts[0]
    while after := _after(edges, name):
        if len(after) > 1:
            raise InterchangeError(
                f"the node {name} leads to {', '.join(after)}; from_nir reads nodes in a row, and "
                "loops of neurons whose spikes come back through an Affine or Linear"
            )
        name = after[0]
        if len(_before(edges, name)) > 1:
            raise InterchangeError(
                f"the nodes {', '.join(_before(edges, name))} all lead to {name}; from_nir reads "
                "nodes in a row, and loops of neurons whose spikes come back through an Affine or "
                "Linear"
            )
        row.append(places[name])
    for place in row:
        place.name = _owner(place, row)
    if len(row) != len(places):
        lost = sorted(name for name, place in places.items() if place not in row)
        raise InterchangeError(f"no way leads from the input to {', '.join(lost)}")
    return [place for place in row if place.kind not in PASSING]


def _owner(place: Place, row: list[Place]) -> str:
    """Return the name of the sub-graph if it is just a recurrent layer, else that of the node."""
    beside = [one for one in row if one.graph == place.graph and one.kind not in PASSING]
    return place.graph if place.graph and place.back and beside == [place] else place.name
