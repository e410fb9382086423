"""The nodes of a NIR graph in a row, with what comes back to neurons beside them.

Sub-graphs are laid open first, so that a recurrent layer is found whether it is a graph of its own,
as most libraries write it, or a loop in the whole.
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
    """A node in the row, with the threshold of a leaky integrator and the weights of a loop.

    graph: name of the graph that it was in, "" for the whole.
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

    through_weights: the input of a recurrent layer is drawn to its weights, as spyx does, and
    meant to reach the neurons.

    Raises:
        InterchangeError: a graph that branches, or has several inputs or outputs, or a loop of
            another kind than neurons whose spikes come back through weights.
    """
    places, edges = _opened(graph, "")
    edges = _joined(places, list(dict.fromkeys(edges)))
    edges = _loops(places, edges, through_weights)
    return _in_a_row(places, edges)


def _opened(graph: Any, within: str) -> tuple[dict[str, Place], Edges]:
    """Return places and edges, those of graphs inside included."""
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
    """Take each threshold that a leaky integrator alone leads to into its place."""
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
    """Take the weights by which spikes come back into the place of their neurons."""
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
    """Return the name of the graph that is a recurrent layer and nothing else, else the node's."""
    beside = [one for one in row if one.graph == place.graph and one.kind not in PASSING]
    return place.graph if place.graph and place.back and beside == [place] else place.name
