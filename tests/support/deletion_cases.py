"""What deleting promises, as tests that run on any catalog and store: a test module says by `make_vault` on which.

class TestDeletionHere(DeletionCases):
    @pytest.fixture
    def make_vault(self, tmp_path): ...
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from strongroom.backups import creation, deletion, errors, holding, policies
from strongroom.backups.context import Options
from strongroom.storage.base import Store
from support.vault import Vault, edited, generations, noise

MakeVault = Callable[[Options | None], Vault]


class DeletionCases:
    """Deleting backups: exact, promised, refused where it must be."""

    @pytest.fixture
    def vault(self, make_vault: MakeVault) -> Vault:
        return make_vault(None)

    def test_deleting_each_of_five_frees_what_was_promised_and_nothing_else(self, vault: Vault) -> None:
        """Middle, oldest, newest, …, last: promise = receipt = change of the store, and the others restore byte for byte."""
        keys = [vault.backup(data) for data in generations(5)]
        vault.check()
        for victim in (2, 0, 4, 1, 3):
            before = vault.size()
            promise = vault.preview(keys[victim]).total
            vault.delete(keys[victim])
            vault.run()
            receipt = vault.receipt(keys[victim])
            assert receipt["freed"] == promise.freed == receipt["promised"]["freed"]
            assert receipt["waiting"] == promise.waiting
            assert receipt["removed_objects"] == promise.objects
            assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
            assert receipt["reclaimed"]["written"] <= promise.owned
            vault.check()
        assert [stat.name.split("/")[-1] for stat in vault.store.list("") if not stat.name.startswith("owner/")] == ["closed"]

    def test_without_a_budget_dead_bytes_wait_and_are_counted(self, make_vault: MakeVault) -> None:
        """reclaim_budget 0 rewrites nothing: what does not go whole waits, and the books say so."""
        vault = make_vault(Options(chunk_average=4096, pack_target=32768, reclaim_budget=0))
        data = noise(200_000, 1)
        keys = [vault.backup({"a": data})]
        for number in range(4):
            data = edited(data, number, edits=8)
            keys.append(vault.backup({"a": data}))
        waiting = 0
        for key in keys[:3]:
            vault.delete(key)
            vault.run()
            receipt = vault.receipt(key)
            assert receipt["reclaimed"] == {"read": 0, "written": 0, "dropped": 0, "net": 0}
            waiting += receipt["waiting"]
            vault.check()
        assert waiting > 0

    def test_a_set_is_previewed_as_a_set(self, vault: Vault) -> None:
        """What two neighbours share dies only with both: the set's promise is what deleting them one after the other does."""
        shared = noise(80_000, 5)
        keys = [
            vault.backup({"k": noise(1000, 1)}),
            vault.backup({"k": noise(1000, 1), "s": shared}),
            vault.backup({"k": noise(1000, 1), "s": shared}),
            vault.backup({"k": noise(1000, 1)}),
        ]
        alone = [vault.preview(key).total for key in keys[1:3]]
        both = vault.preview(*keys[1:3]).total
        assert both.owned > alone[0].owned + alone[1].owned + 79_000
        before = vault.size()
        deletion.delete_batch(vault.ctx, vault.project, keys[1:3], lambda conn, b, n: None)
        for key in keys[1:3]:
            vault.wanted.pop(key)
        vault.run()
        receipts = [vault.receipt(key) for key in keys[1:3]]
        assert sum(r["freed"] for r in receipts) == both.freed
        assert sum(r["waiting"] for r in receipts) == both.waiting
        change = sum(r["freed"] + r["reclaimed"]["net"] - r["put_bytes"] for r in receipts)
        assert before - vault.size() == change
        vault.check()

    def test_a_batch_is_all_or_nothing(self, vault: Vault) -> None:
        """One id that may not go: the refusal is raised and nothing is decided for the others."""
        first, second = (vault.backup(data) for data in generations(2))
        holding.hold(vault.ctx, vault.project, second, holding.Hold("evidence"), lambda conn: None)
        with pytest.raises(errors.BackupHeld, match="evidence"):
            deletion.delete_batch(vault.ctx, vault.project, [first, second], lambda conn, b, n: None)
        for bad in ([], [first, first], [first] * 11):
            with pytest.raises(errors.BadBatch):
                deletion.delete_batch(vault.ctx, vault.project, bad, lambda conn, b, n: None)
        assert vault.state(first) == "COMPLETED"
        vault.check()

    def test_the_same_delete_answers_the_same_job_while_it_runs(self, vault: Vault) -> None:
        """Asked again before the job has run: one job; afterwards the backup is unknown."""
        first, _ = (vault.backup(data) for data in generations(2))
        job = vault.delete(first)
        assert vault.delete(first) == job
        vault.run()
        with pytest.raises(errors.NoSuchBackup):
            vault.delete(first)

    def test_a_preview_that_moved_is_refused(self, vault: Vault) -> None:
        """If-Match of a version that a later backup has moved: refused, nothing decided; the new version is accepted."""
        source = generations(3)
        first = vault.backup(next(source))
        vault.backup(next(source))
        version = vault.preview(first).version
        vault.backup(next(source))
        with pytest.raises(errors.PreviewMoved):
            vault.delete(first, if_match=version)
        assert vault.state(first) == "COMPLETED"
        vault.delete(first, if_match=vault.preview(first).version)
        vault.run()
        assert vault.state(first) == "DELETED"

    def test_what_is_built_restored_or_elsewhere_is_refused(self, vault: Vault) -> None:
        """BUILDING, read by a restore, another project's: each has its own refusal."""
        source = generations(2)
        first = vault.backup(next(source))
        building, _ = vault.create(next(source))
        with pytest.raises(errors.BackupBuilding):
            vault.delete(building)
        vault.run()
        vault.restore(first)
        with pytest.raises(errors.BackupRestoring):
            vault.delete(first)
        vault.run()
        with pytest.raises(errors.NoSuchBackup):
            deletion.delete(vault.ctx, "f" * 32, first, lambda conn, b, n: None)
        vault.delete(first)
        vault.run()

    def test_an_automated_backup_goes_by_policy_alone_while_that_is_on(self, vault: Vault) -> None:
        """Refused by hand, in the preview too; with the policy off it is deleted like any other, and a failed one whenever."""
        wanted = creation.Wanted("automated", origin="Auto")

        def automated() -> str:
            return creation.create(vault.ctx, vault.project, vault.source, wanted, lambda conn, key: None)[0]

        def set_policy(policy: policies.Policy) -> None:
            policies.put(vault.ctx, vault.project, vault.source, policy, lambda conn: None)

        vault.engine.databases["plain://source"] = next(generations(1))
        completed = automated()
        vault.run()
        source = vault.engine.databases.pop("plain://source")
        failed = automated()
        vault.run()
        vault.engine.databases["plain://source"] = source
        set_policy(policies.Policy(7, "02:00-03:00", "1,2,3,4,5,6,7"))
        with pytest.raises(errors.BackupAutomated):
            vault.delete(completed)
        assert list(vault.preview(completed, failed).refusals) == [completed]
        vault.delete(failed)
        set_policy(policies.OFF)
        vault.delete(completed)
        vault.run()
        assert (vault.state(completed), vault.state(failed)) == ("DELETED", "DELETED")
        vault.check()

    def test_deleting_the_parent_while_its_child_is_built_frees_exactly(self, vault: Vault) -> None:
        """The parent goes in the middle of the child's capture: the child is whole, and the rest is settled and booked."""
        shared, lost = noise(100_000, 1), noise(70_000, 2)
        parent = vault.backup({"a": shared, "b": lost, "c": shared[:50_000]})

        def delete_parent() -> None:
            vault.engine.during = None
            promise = vault.preview(parent).total
            vault.delete(parent)
            assert promise.undecided > 0

        vault.engine.during = delete_parent
        child, _ = vault.create({"a": shared, "c": shared[:50_000], "z": noise(3000, 9)})
        vault.run()
        assert vault.state(child) == "COMPLETED"
        vault.wanted[child] = {"a": shared, "c": shared[:50_000], "z": noise(3000, 9)}
        vault.check()
        receipt = vault.receipt(parent)
        assert receipt["settled_freed"] + receipt["settled_waiting"] >= 69_000
        assert receipt["settled_freed"] + receipt["settled_waiting"] <= receipt["undecided"] + 10_000

    def test_a_failed_build_owns_nothing_and_is_deletable(self, vault: Vault) -> None:
        """The engine breaks half-way: FAILED with the reason, its packs removed, and a delete of it is accepted."""
        source = generations(2)
        vault.backup(next(source))
        before = {stat.name for stat in vault.store.list("")}
        vault.engine.broken = "the engine went away: start it again"
        failed, job = vault.create(next(source))
        vault.run()
        vault.engine.broken = None
        assert vault.state(failed) == "FAILED"
        assert vault.job(job).error == "the engine went away: start it again"
        left = {stat.name for stat in vault.store.list("")} - before
        assert {name.split("/")[1] for name in left} <= {"grave"}
        vault.check()
        vault.delete(failed)
        vault.run()
        assert vault.state(failed) == "DELETED"
        vault.check()

    def test_a_stopped_build_ends_and_frees_its_lineage(self, vault: Vault) -> None:
        """Stop in the middle of a capture: the worker ends by its fence, the next backup begins."""
        source = generations(3)
        first = vault.backup(next(source))

        def stop() -> None:
            vault.engine.during = None
            creation.stop(vault.ctx, vault.project, stopped, lambda conn: None)

        vault.engine.during = stop
        stopped, job = vault.create(next(source))
        vault.run()
        assert vault.state(stopped) == "FAILED"
        assert vault.job(job).state == "CANCELLED"
        vault.backup(next(source))
        vault.check()
        assert vault.state(first) == "COMPLETED"

    def test_a_second_backup_of_the_instance_is_refused_while_one_is_taken(self, vault: Vault) -> None:
        """One build in a lineage at a time."""
        vault.create({"a": noise(1000, 1)})
        with pytest.raises(errors.InstanceBusy):
            vault.create()
        vault.run()
        vault.create()
        vault.run()

    def test_nothing_changed_stores_next_to_nothing(self, vault: Vault) -> None:
        """A backup of the same data adopts everything, its pages included: one small manifest is all that is put."""
        data = {"a": noise(300_000, 1), "b": noise(50_000, 2)}
        vault.backup(data)
        before = vault.size()
        second = vault.backup(data)
        assert vault.size() - before < 4_000
        assert vault.preview(second).total.owned < 4_000

    def test_a_grave_put_after_the_preview_of_the_last_backup_moves_its_version(self, make_vault: MakeVault) -> None:
        """The lineage's last delete takes the graves along: one that was put since the preview makes its numbers wrong."""
        vault = make_vault(Options(chunk_average=4096, pack_target=32768, reclaim_budget=0))
        first, last = (vault.backup(data) for data in generations(2))
        vault.delete(first)
        early = vault.preview(last)
        vault.run()
        with pytest.raises(errors.PreviewMoved):
            vault.delete(last, if_match=early.version)
        seen = vault.preview(last)
        assert seen.total.freed > early.total.freed
        vault.delete(last, if_match=seen.version)
        vault.run()
        assert vault.receipt(last)["freed"] == seen.total.freed
        vault.check()

    def test_a_grave_whose_lineage_is_closed_while_it_is_put_does_not_stay(
        self, vault: Vault, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another delete empties the chain and has done all its work when the put arrives: the writer takes its grave away."""
        first, last = (vault.backup(data) for data in generations(2))
        put = type(vault.store).put_new

        def put_late(store: Store, name: str, data: bytes) -> int:
            if "/grave/" in name:
                monkeypatch.undo()
                vault.delete(last)
                vault.worker.step()
                assert vault.state(last) == "DELETED"
            return put(store, name, data)

        monkeypatch.setattr(type(vault.store), "put_new", put_late)
        vault.delete(first)
        vault.run()
        assert vault.state(first) == "DELETED"
        vault.check()
