"""The built-in roles against what the contracts ask for."""

from google.protobuf.descriptor import MethodDescriptor

from mesh.principal import EVERYTHING, holds
from services.auth.domain import ADMIN, ADMIN_ONLY, BUILT_IN
from services.catalog import CATALOGUE
from weft.auth.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    auth_service_pb2,
    role_service_pb2,
    tenant_service_pb2,
)
from weft.options.v1 import options_pb2

AUTH = (
    api_key_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    auth_service_pb2.DESCRIPTOR,
    role_service_pb2.DESCRIPTOR,
    tenant_service_pb2.DESCRIPTOR,
)


def policies() -> list[tuple[MethodDescriptor, options_pb2.MethodPolicy]]:
    contracts = {contract for entry in CATALOGUE for contract in entry.contracts}
    contracts |= {each for file in AUTH for each in file.services_by_name.values()}
    methods = [method for contract in contracts for method in contract.methods]
    return [(method, method.GetOptions().Extensions[options_pb2.policy]) for method in methods]


def permissions() -> set[str]:
    return {policy.permission for _, policy in policies() if policy.permission}


def test_every_permission_is_in_a_role_or_meant_for_administrators_only() -> None:
    given = set().union(*(role for name, role in BUILT_IN.items() if name != ADMIN))
    assert permissions() - given == ADMIN_ONLY


def test_no_role_gives_what_no_method_asks_for() -> None:
    given = set().union(*BUILT_IN.values()) - {EVERYTHING}
    assert given - permissions() == set()


def test_what_concerns_the_whole_deployment_is_for_administrators() -> None:
    platform = {policy.permission for _, policy in policies() if policy.platform}
    assert platform <= ADMIN_ONLY


def test_viewers_only_read() -> None:
    changing = {
        policy.permission
        for _, policy in policies()
        if policy.permission and policy.effect != options_pb2.EFFECT_READ
    }
    assert not any(holds(BUILT_IN["viewer"], permission) for permission in changing)


def test_who_may_run_may_follow_what_they_run() -> None:
    for role in ("developer", "operator", "worker"):
        assert BUILT_IN[role] >= {"agents.run", "state.create", "state.get"}
