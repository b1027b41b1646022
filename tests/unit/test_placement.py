"""The placement table: valid by construction, ordered by (epoch, version), same after the wire."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.placement import PlacementTable, newer, round_robin
from cluster.errors import ProtocolError
from cluster.types import ExpertId, NodeId

NODES = [NodeId("node-0"), NodeId("node-1"), NodeId("node-2")]


@given(layers=st.integers(1, 6), experts=st.integers(1, 40), nodes=st.integers(1, 7))
def test_round_robin_gives_every_expert_one_node_and_spreads_them_evenly(layers, experts, nodes):
    names = [NodeId(f"n{i}") for i in range(nodes)]
    table = round_robin(layers, experts, names, epoch=2, version=5)

    shares = [table.experts_of(name) for name in names]
    assert sorted(e for share in shares for e in share) == [
        ExpertId(layer, index) for layer in range(layers) for index in range(experts)
    ]
    for layer in range(layers):
        held = [sum(e.layer == layer for e in share) for share in shares]
        assert max(held) - min(held) <= 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_remainders_do_not_all_fall_to_the_first_node():
    table = round_robin(3, 4, NODES)
    assert [len(table.experts_of(name)) for name in NODES] == [4, 4, 4]


def test_owners_are_the_first_replicas_as_int32():
    table = PlacementTable(1, 1, tuple(NODES), (((2, 0), (1,)), ()))
    assert table.owners(0).tolist() == [2, 1]
    assert table.owners(0).dtype == np.int32
    assert table.owners(1).shape == (0,)
    assert table.experts_of(NODES[0]) == [ExpertId(0, 0)]


def test_dense_layers_have_no_experts():
    table = round_robin(4, 2, NODES[:1], sparse=(1, 3))
    assert [len(layer) for layer in table.replicas] == [0, 2, 0, 2]
    assert table.experts_of(NODES[0]) == [ExpertId(1, 0), ExpertId(1, 1), ExpertId(3, 0), ExpertId(3, 1)]


def test_a_node_outside_the_table_holds_nothing():
    assert round_robin(1, 4, NODES[:2]).experts_of(NODES[2]) == []


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ((((),),), "no replica"),
        ((((1, 1),),), "twice"),
        ((((3,),),), "unknown node"),
        ((((-1,),),), "unknown node"),
    ],
)
def test_an_invalid_table_cannot_be_made(replicas, words):
    with pytest.raises(ValueError, match=words):
        PlacementTable(1, 1, tuple(NODES), replicas)


def test_a_node_named_twice_is_refused():
    with pytest.raises(ValueError, match="appears twice"):
        PlacementTable(1, 1, (NODES[0], NODES[0]), ())


def test_a_placement_without_nodes_is_refused():
    with pytest.raises(ValueError, match="at least one node"):
        round_robin(1, 4, [])


def test_the_wire_form_survives_msgpack_and_the_table_is_hashable():
    table = round_robin(3, 5, NODES, epoch=4, version=9, sparse=(0, 2))
    again = PlacementTable.from_wire(msgpack.unpackb(msgpack.packb(table.to_wire())))
    assert again == table
    assert hash(again) == hash(table)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epoch": 1, "version": 1, "nodes": ["a"], "replicas": [[[1]]]},
        {"epoch": 1, "version": 1, "nodes": ["a"], "replicas": 3},
        {"epoch": "x", "version": 1, "nodes": [], "replicas": []},
    ],
)
def test_a_broken_wire_form_is_a_protocol_error(values):
    with pytest.raises(ProtocolError, match="broken placement table"):
        PlacementTable.from_wire(values)


def test_newer_is_epoch_first_then_version():
    old = round_robin(1, 2, NODES, epoch=1, version=7)
    assert newer(round_robin(1, 2, NODES, epoch=1, version=8), old)
    assert newer(round_robin(1, 2, NODES, epoch=2, version=1), old)
    assert not newer(old, old)
    assert not newer(round_robin(1, 2, NODES, epoch=1, version=6), old)
    assert newer(old, None)


def test_repr_is_short():
    assert repr(round_robin(6, 32, NODES, 2, 3)) == "PlacementTable(2.3, 3 nodes, 192 experts)"
