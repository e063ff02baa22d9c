"""Schedulers and relays say that they live; moves are counted for good."""

import django.utils.timezone
from django.db import migrations, models

import container_manager.ids


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0010_events")]

    operations = [
        migrations.CreateModel(
            name="Process",
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
                (
                    "kind",
                    models.CharField(
                        choices=[("scheduler", "Scheduler"), ("relay", "Relay")], max_length=20
                    ),
                ),
                ("name", models.CharField(max_length=255)),
                ("hostname", models.CharField(max_length=255)),
                ("pid", models.PositiveIntegerField()),
                ("version", models.CharField(max_length=50)),
                ("beat", models.BigIntegerField(default=0)),
                ("last_beat_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("started_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                ("updated_at", models.DateTimeField(auto_now=True)),
            ],
            options={
                "verbose_name_plural": "processes",
                "db_table": "processes",
                "ordering": ("-started_at", "-id"),
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="MoveCount",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "entity_type",
                        "old_state",
                        "new_state",
                        "up_to_ms",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("entity_type", models.CharField(max_length=20)),
                (
                    "old_state",
                    models.CharField(blank=True, help_text="Empty: it began there.", max_length=20),
                ),
                ("new_state", models.CharField(max_length=20)),
                ("up_to_ms", models.BigIntegerField(help_text="-1: for how long is not counted.")),
                ("moves", models.BigIntegerField()),
                ("total_ms", models.BigIntegerField()),
            ],
            options={"db_table": "move_counts", "default_permissions": ()},
        ),
        migrations.CreateModel(
            name="MoveCounter",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                (
                    "counted",
                    models.BigIntegerField(default=0, help_text="The sequence of the last one."),
                ),
            ],
            options={"db_table": "move_counter", "default_permissions": ()},
        ),
    ]
