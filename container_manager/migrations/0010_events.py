"""Moves in the order in which they are told, and how far each publisher has come.

What the history has by now counts as told: nobody is flooded with what was long ago.
"""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import container_manager.ids
from container_manager import guarding

BEGIN = {
    "postgresql": """
        INSERT INTO event_sequencer (id, last_sequence, snapshot, last_order, cluster, told_at)
        VALUES (1, 0, pg_current_snapshot()::text, 0, NULL, clock_timestamp())
    """,
    "sqlite": """
        INSERT INTO event_sequencer (id, last_sequence, snapshot, last_order, told_at)
        SELECT 1, 0, '', coalesce(max(commit_order), 0), strftime('%Y-%m-%d %H:%M:%f', 'now')
        FROM state_history
    """,
}


def begin(_apps, schema_editor):
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute("CREATE SEQUENCE event_awaited AS smallint MAXVALUE 2")
        schema_editor.execute("ALTER TABLE event_sequencer SET (fillfactor = 10)")
    if vendor in BEGIN:
        schema_editor.execute(BEGIN[vendor], None)


def end(_apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP SEQUENCE IF EXISTS event_awaited")


class Migration(migrations.Migration):
    dependencies = [
        ("container_manager", "0009_workflows"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="EventSequencer",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                (
                    "last_sequence",
                    models.BigIntegerField(default=0, help_text="The place that was given last."),
                ),
                (
                    "snapshot",
                    models.TextField(
                        blank=True,
                        default="",
                        help_text="PostgreSQL: the transactions that are dealt with.",
                    ),
                ),
                (
                    "last_order",
                    models.BigIntegerField(
                        default=0,
                        help_text="SQLite: the commit_order up to which all is dealt with.",
                    ),
                ),
                (
                    "cluster",
                    models.BigIntegerField(
                        blank=True,
                        help_text="PostgreSQL: the server whose transactions these are.",
                        null=True,
                    ),
                ),
                (
                    "told_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now,
                        help_text="When there was last something to give a place to.",
                    ),
                ),
            ],
            options={
                "db_table": "event_sequencer",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="PublisherState",
            fields=[
                ("alias", models.CharField(max_length=64, primary_key=True, serialize=False)),
                (
                    "position",
                    models.BigIntegerField(
                        default=0,
                        help_text="All events up to this one are delivered, or dead letters.",
                    ),
                ),
                ("delivered_at", models.DateTimeField(blank=True, null=True)),
                (
                    "failing_since",
                    models.DateTimeField(
                        blank=True, help_text="Empty: the latest delivery went well.", null=True
                    ),
                ),
                ("failures", models.PositiveIntegerField(default=0, help_text="In a row.")),
                ("last_error", models.TextField(blank=True)),
                ("next_try_at", models.DateTimeField(blank=True, null=True)),
                (
                    "refused",
                    models.BigIntegerField(
                        blank=True,
                        help_text="The event that the receiver refuses; the next one is it.",
                        null=True,
                    ),
                ),
                (
                    "tries",
                    models.PositiveIntegerField(default=0, help_text="How often it was refused."),
                ),
                (
                    "holder",
                    models.UUIDField(blank=True, help_text="The relay that serves it.", null=True),
                ),
                (
                    "epoch",
                    models.BigIntegerField(
                        default=0, help_text="Rises when another relay takes it over."
                    ),
                ),
                (
                    "beat",
                    models.BigIntegerField(
                        default=0, help_text="Counts up while its holder lives."
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                ("updated_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                "verbose_name": "publisher",
                "db_table": "publishers",
                "ordering": ("alias",),
            },
        ),
        migrations.CreateModel(
            name="DeadLetter",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=container_manager.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("publisher", models.CharField(help_text="The alias.", max_length=64)),
                ("sequence", models.BigIntegerField()),
                ("event", models.JSONField(help_text="As it was to be told.")),
                ("tries", models.PositiveIntegerField()),
                ("error", models.TextField(help_text="What the receiver said last.")),
                (
                    "wanted_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="Since when somebody wants it to be delivered again.",
                        null=True,
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                ("updated_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                "db_table": "dead_letters",
                "ordering": ("-created_at", "-id"),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("publisher", "sequence"), name="one_letter_per_publisher_and_event"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "sequence",
                    models.BigIntegerField(
                        help_text="From 1 on, without gaps.", primary_key=True, serialize=False
                    ),
                ),
                (
                    "event_id",
                    models.UUIDField(help_text="The id of the row of the history.", unique=True),
                ),
                ("entity_type", models.CharField(max_length=20)),
                ("entity_id", models.UUIDField()),
                ("old_state", models.CharField(blank=True, max_length=20, null=True)),
                ("new_state", models.CharField(max_length=20)),
                ("version", models.PositiveIntegerField()),
                ("attempt", models.PositiveIntegerField(blank=True, null=True)),
                ("actor", models.CharField(max_length=200)),
                ("reason", models.CharField(blank=True, max_length=64)),
                ("metadata", models.JSONField(blank=True, default=dict)),
                ("changed_at", models.DateTimeField()),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        db_index=False,
                        help_text="Whose job, or whose DAG's run or task, it was.",
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "events",
                "ordering": ("sequence",),
                "default_permissions": (),
            },
        ),
        migrations.RunPython(begin, end),
        migrations.RunPython(guarding.install_in_migration, guarding.remove_in_migration),
    ]
