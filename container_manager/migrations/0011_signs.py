"""Schedulers and relays say that they live."""

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
    ]
