"""The migrations' linter finds what locks, rewrites or takes away, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.postgres.functions import RandomUUID
from django.contrib.postgres.operations import AddIndexConcurrently, BtreeGistExtension
from django.db import migrations, models
from django.db.models.functions import Now

from deploy.migrations import KNOWN, examine, findings, our_apps
from gateway_project.core.stores import migrating

ROOT = Path(__file__).resolve().parents[2]
FIELD = models.IntegerField
INDEX = models.Index(fields=["x"], name="x")
RANDOM = RandomUUID()
GENERATED = models.GeneratedField(expression=models.F("y"), output_field=FIELD(), db_persist=True)


def problems(*operations: Any, atomic: bool = True) -> list[str]:
    made = migrations.Migration("0002_x", "accounts")
    made.operations, made.atomic = list(operations), atomic
    return list(examine(made))


def test_every_app_of_ours_is_looked_at() -> None:
    made = {path.parent.parent.name for path in ROOT.glob("*/migrations/0*.py")}

    assert len(made) > 4
    assert made <= our_apps()
    assert "auth" not in our_apps()


def test_ours_are_fine_or_excused() -> None:
    assert {name for name, _ in findings()} == set(KNOWN)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (migrations.RemoveField("a", "x"), "old processes use it"),
        (migrations.DeleteModel("a"), "old processes use it"),
        (migrations.RenameField("a", "x", "y"), "know the old name"),
        (migrations.RenameModel("a", "b"), "know the old name"),
        (migrations.AlterModelTable("a", "b"), "know the old name"),
        (migrations.AlterField("a", "x", FIELD()), "may rewrite the table"),
        (migrations.AddField("a", "x", FIELD(default=1)), "Give it a db_default"),
        (migrations.AddField("a", "x", FIELD(null=True, unique=True)), "Add the index apart"),
        (
            migrations.AddField("a", "x", models.ForeignKey("b", models.CASCADE, null=True)),
            "locks both tables",
        ),
        (migrations.AddField("a", "x", models.UUIDField(db_default=RANDOM)), "Fill it behind"),
        (migrations.AddField("a", "x", models.BigAutoField()), "the table is rewritten"),
        (migrations.AddField("a", "x", GENERATED), "the table is rewritten"),
        (migrations.AddIndex("a", INDEX), "core/stores/migrating.py"),
        (migrations.RemoveIndex("a", "x"), "core/stores/migrating.py"),
        (migrations.AlterUniqueTogether("a", {("x", "y")}), "until its index is built"),
        (migrations.AlterIndexTogether("a", {("x", "y")}), "until its index is built"),
        (migrations.AlterOrderWithRespectTo("a", "x"), "without the order"),
        (migrations.RunSQL("UPDATE a SET x = 1"), "is not seen"),
        (migrations.SeparateDatabaseAndState([migrations.RunSQL("DROP TABLE a")]), "is not seen"),
        (migrations.RunPython(migrations.RunPython.noop), "is not seen"),
        (migrating.on_postgresql("CREATE INDEX x ON a (id)", ""), "is not seen"),
        (BtreeGistExtension(), "is not known here"),
        (AddIndexConcurrently("a", INDEX), "atomic = False"),
        (
            migrations.AddConstraint("a", models.CheckConstraint(condition=models.Q(), name="c")),
            "NOT VALID",
        ),
        (
            migrations.SeparateDatabaseAndState([migrations.RemoveField("a", "x")]),
            "old processes use it",
        ),
    ],
)
def test_a_harmful_operation_is_found(operation: Any, words: str) -> None:
    assert words in " ".join(problems(operation))


def test_tables_and_rows_in_one_transaction_are_found() -> None:
    column = migrations.AddField("a", "x", FIELD(null=True))
    filled = migrations.RunPython(migrations.RunPython.noop)
    assert "in one transaction" in " ".join(problems(column, filled))
    assert "in one transaction" not in " ".join(problems(filled))


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("a", "x", FIELD(null=True)),
        migrations.AddField("a", "x", FIELD(default=1, db_default=1)),
        migrations.AddField("a", "x", models.DateTimeField(db_default=Now())),
        migrations.RemoveConstraint("a", "x"),
        migrations.AlterModelOptions("a", {}),
        migrating.vacuum_often("a"),
        migrating.room_for_updates("a"),
        migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("a", "x")]),
        migrations.CreateModel("a", [("id", models.AutoField(primary_key=True))]),
    ],
)
def test_what_harms_nobody_is_not(operation: Any) -> None:
    assert problems(operation) == []


def test_a_new_table_may_have_everything() -> None:
    made = migrations.CreateModel("a", [("id", models.AutoField(primary_key=True))])
    assert problems(made, migrations.AddIndex("a", INDEX)) == []
    assert problems(AddIndexConcurrently("a", INDEX), atomic=False) == []
