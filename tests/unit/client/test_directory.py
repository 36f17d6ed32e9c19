"""Finding name servers, brokers and their doors."""

from __future__ import annotations

import pytest
from unit.client.fakes import NAME_SERVER, FakeCluster, SimLoop
from unit.client.sim import SimClient

from actormq.client.procedures import Address
from actormq.errors import BrokerUnknown, ConnectFailed, NameServerUnavailable, RouteNotFound
from actormq.wire.codes import RequestCode

TCP = Address("tcp://127.0.0.1:10911")


def client(cluster: FakeCluster, scheme: str = "rocketmq") -> SimClient:
    cluster.create("orders")
    return SimClient(SimLoop(), cluster, scheme=scheme)


def test_the_name_server_that_answered_last_is_asked_first() -> None:
    cluster = FakeCluster()
    one = client(cluster)
    directory = one.session.directory
    directory._name_servers = [Address("tcp://127.0.0.1:1"), Address(f"tcp://{NAME_SERVER}")]
    cluster.down.add("127.0.0.1:1")
    one.run(directory.refresh("orders"))
    cluster.down.clear()  # were the first one asked again, its address would be unknown to the cluster
    one.run(directory.refresh("orders"))
    assert [address for address, _ in cluster.asked] == [NAME_SERVER] * 2


def test_when_no_name_server_answers_the_error_names_them() -> None:
    cluster = FakeCluster()
    one = client(cluster)
    cluster.down.add(NAME_SERVER)
    with pytest.raises(NameServerUnavailable, match=r"127\.0\.0\.1:9876"):
        one.run(one.session.directory.refresh("orders"))


def test_an_unknown_topic() -> None:
    one = client(FakeCluster())
    with pytest.raises(RouteNotFound, match="nowhere"):
        one.run(one.session.directory.refresh("nowhere"))


def test_an_unknown_broker() -> None:
    one = client(FakeCluster())
    with pytest.raises(BrokerUnknown, match="broker-x"):
        one.run(one.session.directory.master_of("broker-x"))


def test_a_broker_is_asked_for_its_door_once_and_again_after_it_could_not_be_reached() -> None:
    """It may have come back with another port."""
    cluster = FakeCluster()
    cluster.knows_endpoints = True
    one = client(cluster, "zmq")
    directory = one.session.directory
    one.run(directory.refresh("orders"))
    for port in (1, 1, 2):
        cluster.broker().zmq_address = f"127.0.0.1:{port}"
        door = one.run(directory.master_of("broker-a"))
        if port == 1:
            assert door == "zmq://127.0.0.1:1"
            first_asked = cluster.count(RequestCode.GET_ENDPOINTS)
            assert first_asked == 1
    assert door == "zmq://127.0.0.1:1", "known, not asked again"
    one.session.on_link_closed(door, ConnectFailed("refused"))
    assert one.run(directory.master_of("broker-a")) == "zmq://127.0.0.1:2"


def test_a_rocketmq_url_never_leads_to_zeromq() -> None:
    cluster = FakeCluster()
    cluster.knows_endpoints = True
    cluster.broker().zmq_address = "127.0.0.1:1"
    one = client(cluster)
    one.run(one.session.directory.refresh("orders"))
    assert one.run(one.session.directory.master_of("broker-a")) == TCP
    assert cluster.count(RequestCode.GET_ENDPOINTS) == 0


def test_a_broker_without_zeromq_is_talked_to_over_tcp() -> None:
    cluster = FakeCluster()
    cluster.knows_endpoints = True
    one = client(cluster, "zmq")
    one.run(one.session.directory.refresh("orders"))
    assert one.run(one.session.directory.master_of("broker-a")) == TCP
