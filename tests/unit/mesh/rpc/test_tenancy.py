"""Resource names are found wherever a request holds them, and patterns hold as they say."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mesh.principal import covers, holds
from mesh.rpc.methods import methods_of
from mesh.rpc.tenancy import foreign, names_in, platform_names, tenant_of
from tests.contract.test_contracts import services
from weft.agents.v1 import agent_service_pb2
from weft.auth.v1 import role_service_pb2
from weft.options.v1 import options_pb2


def tree_class() -> Any:
    """A message with names in a list, a map, a oneof, and itself."""
    file = descriptor_pb2.FileDescriptorProto(
        name="weft/test/names.proto", package="weft.test.names", syntax="proto3"
    )
    message = file.message_type.add(name="Tree")
    message.oneof_decl.add(name="kind")
    named = [message.field.add(name="names", number=1, type=9, label=3)]
    named.append(message.field.add(name="chosen", number=2, type=9, label=1, oneof_index=0))
    message.field.add(
        name="branches", number=3, type=11, label=3, type_name=".weft.test.names.Tree"
    )
    message.field.add(
        name="by_key", number=4, type=11, label=3, type_name=".weft.test.names.Tree.ByKeyEntry"
    )
    entry = message.nested_type.add(name="ByKeyEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".weft.test.names.Tree")
    for field in named:
        field.options.Extensions[options_pb2.bounds].resource = "tenants/*/agents/*"
    pool: Any = descriptor_pool.Default
    pool().AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool().FindMessageTypeByName("weft.test.names.Tree"))


Tree = tree_class()


def test_names_are_found_in_lists_maps_oneofs_and_deep_inside() -> None:
    tree = Tree(names=["tenants/a/agents/1", ""], chosen="tenants/b/agents/2")
    tree.branches.add().branches.add(names=["tenants/c/agents/3"])
    tree.by_key["x"].names.append("tenants/d/agents/4")
    found = names_in(Tree.DESCRIPTOR)(tree)
    assert sorted(map(tenant_of, found), key=str) == ["a", "b", "c", "d"]
    assert list(foreign(found, "a")) == [name for name in found if "/a/" not in name]


def test_names_of_real_requests_are_found() -> None:
    request = agent_service_pb2.UpdateAgentRequest()
    request.agent.name = "tenants/acme/agents/bot"
    assert names_in(request.DESCRIPTOR)(request) == ["tenants/acme/agents/bot"]
    bind = role_service_pb2.CreateRoleBindingRequest(
        parent="tenants/a", role="tenants/b/roles/r", members=["tenants/c/apiKeys/k"]
    )
    bind.resource = "tenants/d/agents/*"
    assert [tenant_of(name) for name in names_in(bind.DESCRIPTOR)(bind)] == list("abcd")


@pytest.mark.parametrize("name", ["", "tenants", "tenants/", "/acme", "agents/acme/x", "TENANTS/a"])
def test_what_is_not_in_a_tenant_has_none(name: str) -> None:
    assert not tenant_of(name)


PLATFORM_FORMS = {"services/*/split", "services/-"}
"""What may be named that is in no tenant: written by hand, so that none comes unseen."""


def test_every_resource_bound_of_a_request_is_in_a_tenant_or_asks_for_the_platform() -> None:
    """What isn't a name in a tenant is refused by its bound: so no other form may be allowed,
    but where the method acts upon it, and the permission for the platform is asked for."""
    for service in services():
        for spec in methods_of(service):
            for field in spec.request_class.DESCRIPTOR.fields:
                options: Any = field.GetOptions()
                resource = options.Extensions[options_pb2.bounds].resource
                forms = set(resource.split("|")) if resource else set()
                outside = {form for form in forms if not form.startswith("tenants/*")}
                assert not outside or spec.policy.resource == field.name, (spec.path, field.name)
                assert outside <= PLATFORM_FORMS, (spec.path, field.name)
                for form in outside:
                    names = platform_names(spec.request_class.DESCRIPTOR, field.name)
                    assert names is not None
                    assert names.fullmatch(form.replace("*", "x1"))
                    assert not names.fullmatch("tenants/acme")


@pytest.mark.parametrize(
    ("pattern", "resource", "expected"),
    [
        ("tenants/acme", "tenants/acme", True),
        ("tenants/acme", "tenants/acme/agents/bot", True),
        ("tenants/acme", "tenants/acme2", False),
        ("tenants/acme/agents/*", "tenants/acme/agents/bot", True),
        ("tenants/acme/agents/*", "tenants/acme/agents/bot/sessions/s", True),
        ("tenants/acme/agents/*", "tenants/acme/agents", False),
        ("tenants/acme/agents/*", "tenants/acme", False),
        ("tenants/acme/agents/*", "tenants/acme/tools/t", False),
        ("tenants/acme/agents/*/sessions/s", "tenants/acme/agents/b/sessions/s/turns/t", True),
        ("tenants/acme/agents/bot", "tenants/acme/agents/*", False),
        ("tenants/acme/agents/*", "tenants/acme/agents/*", True),
        ("tenants/acme/agents/*", "tenants/acme/agents/-", True),
    ],
)
def test_a_pattern_covers_what_it_matches_and_all_below(
    pattern: str, resource: str, expected: bool
) -> None:
    assert covers(pattern, resource) is expected


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ({"agents.get"}, "agents.get", True),
        ({"agents.*"}, "agents.get", True),
        ({"*"}, "agents.get", True),
        ({"agents.get"}, "agents.*", False),
        ({"agents.*"}, "agents.*", True),
        ({"agents.*"}, "*", False),
        ({"agent.*"}, "agents.get", False),
        (set(), "agents.get", False),
    ],
)
def test_permissions_hold_for_their_area(given: set[str], wanted: str, expected: bool) -> None:
    assert holds(given, wanted) is expected
