"""Accounts, users, grants and what a caller turns out to be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.identity import accounts
from strongroom.identity import tables as t
from strongroom.identity.callers import usable_projects
from strongroom.identity.errors import Forbidden, NameTaken, NotKnown, PolicyInvalid
from strongroom.identity.policies import BUILT_IN, parse
from strongroom.identity.principal import Principal, authorize, may
from strongroom.identity.secrets import Sealer
from support.border import ROOT_KEY, Clock, House, build_house, new_catalog

DELETE = "gaussdbfornosql:instance:deleteBackup"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def test_the_first_start_founds_once_however_many_start(tmp_path: Path) -> None:
    """Four at the same time and one later: one account, one key."""
    catalog, clock, sealer = new_catalog(tmp_path), Clock(), Sealer(ROOT_KEY)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: accounts.first_start(catalog, clock, sealer, password_hash=None), range(4)))
    made.append(accounts.first_start(catalog, clock, sealer, password_hash=None))
    assert sum(first is not None for first in made) == 1
    with catalog.read() as conn:
        for table in (t.account, t.project, t.user, t.access_key):
            assert conn.scalar(sa.select(sa.func.count()).select_from(table)) == 1


def test_no_account_exists_whose_secret_nobody_was_told(tmp_path: Path) -> None:
    """Telling comes before the commit: if it fails, the next start founds again."""
    catalog, clock, sealer = new_catalog(tmp_path), Clock(), Sealer(ROOT_KEY)
    told: list[accounts.FirstStart] = []

    def fail(_: accounts.FirstStart) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        accounts.first_start(catalog, clock, sealer, password_hash=None, tell=fail)
    assert accounts.first_start(catalog, clock, sealer, password_hash=None, tell=told.append) == told[0]
    assert accounts.first_start(catalog, clock, sealer, password_hash=None, tell=fail) is None


def test_names_are_unique_in_their_account(house: House) -> None:
    """Users, projects; and a built-in policy's name cannot be taken."""
    catalog, account = house.services.catalog, house.first.founded.account
    with pytest.raises(NameTaken), catalog.write() as conn:
        accounts.create_user(conn, house.clock, account, "admin", None)
    with pytest.raises(NameTaken), catalog.write() as conn:
        accounts.create_project(conn, house.clock, account, "default")
    with pytest.raises(NameTaken), catalog.write() as conn:
        accounts.put_policy(conn, house.clock, account, "reader", BUILT_IN["reader"])


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 65, "a/b", "a\n"])
def test_a_strange_name_is_refused(house: House, name: str) -> None:
    """Names appear in logs, paths and answers."""
    with house.services.catalog.write() as conn, pytest.raises(accounts.NameInvalid):
        accounts.create_user(conn, house.clock, house.first.founded.account, name, None)


def test_only_what_exists_in_the_users_account_can_be_granted(house: House) -> None:
    """Another account's policy or project is not known here."""
    catalog, clock = house.services.catalog, house.clock
    user = house.new_user("ulla", None)
    with catalog.write() as conn:
        other = accounts.found(conn, clock, "other", "theirs", "boss", None)
        theirs = accounts.put_policy(conn, clock, other.account, "theirs", BUILT_IN["reader"])
    for policy, project in ((theirs, ""), ("reader", other.project), ("no-policy", "")):
        with catalog.write() as conn, pytest.raises(NotKnown):
            accounts.grant(conn, clock, user, policy, project)
    with catalog.write() as conn, pytest.raises(NotKnown):
        accounts.delete_policy(conn, clock, house.first.founded.account, theirs)


def test_a_policy_that_cannot_be_understood_is_not_stored(house: House) -> None:
    """Every stored policy can be read later."""
    with house.services.catalog.write() as conn, pytest.raises(PolicyInvalid):
        accounts.put_policy(conn, house.clock, house.first.founded.account, "mine", "{}")


def test_granting_twice_and_revoking_what_is_not_there_are_no_errors(house: House) -> None:
    """Both say what shall be."""
    user = house.new_user("ulla", "reader")
    with house.services.catalog.write() as conn:
        accounts.grant(conn, house.clock, user, "reader")
        accounts.grant(conn, house.clock, user, "reader")
        accounts.revoke(conn, house.clock, user, "operator")
        accounts.revoke(conn, house.clock, user, "reader")
        assert usable_projects(conn, user) == []


def test_users_may_use_the_projects_that_they_have_a_policy_in(house: House) -> None:
    """The administrator all of the account's, and nobody another account's."""
    catalog, clock = house.services.catalog, house.clock
    with catalog.write() as conn:
        second = accounts.create_project(conn, clock, house.first.founded.account, "second")
        accounts.found(conn, clock, "other", "theirs", "boss", None)
    one, all_of_them = house.new_user("one", "reader", second), house.new_user("all", "reader")
    with catalog.read() as conn:
        names = {u: [p.name for p in usable_projects(conn, u)] for u in (one, all_of_them, house.first.founded.user)}
    assert list(names.values()) == [["second"], ["default", "second"], ["default", "second"]]


def principal(*, administrator: bool = False, policy: str | None = None) -> Principal:
    policies = (parse(policy),) if policy else ()
    return Principal("a", "a", "u", "u", administrator, "p", "p", "token", "r", "", policies)


def test_a_refusal_names_the_action() -> None:
    """So that the administrator knows what to grant."""
    authorize(principal(policy=BUILT_IN["administrator"]), DELETE)
    with pytest.raises(Forbidden, match=DELETE):
        authorize(principal(policy=BUILT_IN["operator"]), DELETE)


def test_the_accounts_administrator_may_everything() -> None:
    """With no policy, and whatever a policy denies."""
    deny = '{"Version":"5.0","Statement":[{"Effect":"Deny","Action":["*"]}]}'
    assert may(principal(administrator=True), DELETE)
    assert may(principal(administrator=True, policy=deny), DELETE)


def test_an_action_that_the_table_does_not_have_is_a_defect() -> None:
    """Never silently allowed or denied, for anyone."""
    for administrator in (True, False):
        with pytest.raises(KeyError):
            may(principal(administrator=administrator), "nosql:no:such")


def test_a_project_is_there_where_a_call_is_about_one() -> None:
    """And a call that is not about one cannot ask for it."""
    assert principal().required_project() == "p"
    with pytest.raises(LookupError):
        Principal("a", "a", "u", "u", True, None, None, "token", "r", "").required_project()
