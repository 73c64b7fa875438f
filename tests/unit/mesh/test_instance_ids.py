"""Whose an instance is, by its id."""

import pytest

from mesh.ids import new_instance_id, user_of_instance
from mesh.runtime.nats_users import ADMIN_NAME, bus_users
from services.catalog import CATALOGUE

USERS = [user.name for user in bus_users(CATALOGUE) if user.name != ADMIN_NAME]


@pytest.mark.parametrize("user", [*USERS, "a-b", "b", "-b", "a" * 36])
def test_an_id_names_the_user_it_was_made_for(user: str) -> None:
    assert user_of_instance(new_instance_id(user)) == user


@pytest.mark.parametrize("user", ["", "a.b", "A", "a*", ">", "a" * 37, "a\n"])
def test_no_id_is_made_that_could_not_be_a_key(user: str) -> None:
    with pytest.raises(ValueError, match="can't be named"):
        new_instance_id(user)


def test_no_id_is_of_two_users() -> None:
    ids = [new_instance_id(user) for user in ("b", "a-b")]
    assert [user_of_instance(each) for each in ids] == ["b", "a-b"]


def test_ids_of_all_users_sort_by_the_time_they_were_made() -> None:
    ids = [new_instance_id(user) for user in reversed(USERS)]
    assert ids == sorted(ids)
