"""The counters of jobs, the triggers that keep them, and the way to the oldest in the queue."""

from django.conf import settings
from django.db import migrations, models

import container_manager.models.counters
from container_manager import guarding


class Migration(migrations.Migration):
    dependencies = [
        ("container_manager", "0004_doors"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="JobChange",
            fields=[
                (
                    "id",
                    container_manager.models.counters.RunningNumber(
                        primary_key=True, serialize=False
                    ),
                ),
                (
                    "owner",
                    models.TextField(
                        blank=True, help_text="`=` and the user's key; empty: nobody."
                    ),
                ),
                ("status", models.CharField(max_length=20)),
                ("queue", models.CharField(max_length=100)),
                ("executor", models.CharField(max_length=64)),
                ("isolation", models.CharField(max_length=20)),
                ("duration_ms", models.BigIntegerField(help_text="Of completed jobs.", null=True)),
                ("jobs", models.BigIntegerField()),
            ],
            options={
                "db_table": "job_changes",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="JobCount",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "scope",
                        "status",
                        "queue",
                        "executor",
                        "isolation",
                        "part",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("scope", models.TextField()),
                ("status", models.CharField(max_length=20)),
                ("queue", models.CharField(max_length=100)),
                ("executor", models.CharField(max_length=64)),
                ("isolation", models.CharField(max_length=20)),
                (
                    "part",
                    models.BigIntegerField(
                        help_text="Of what is folded at once, each has its own."
                    ),
                ),
                ("jobs", models.BigIntegerField()),
            ],
            options={
                "db_table": "job_counts",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="JobDuration",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "scope",
                        "width",
                        "from_ms",
                        "part",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("scope", models.TextField()),
                (
                    "width",
                    models.IntegerField(help_text="1,000,000, 10,000, 100 or 1 millisecond."),
                ),
                ("from_ms", models.BigIntegerField()),
                ("part", models.BigIntegerField()),
                ("jobs", models.BigIntegerField()),
                ("total_ms", models.BigIntegerField()),
            ],
            options={
                "db_table": "job_durations",
                "default_permissions": (),
            },
        ),
        migrations.AddIndex(
            model_name="containerjob",
            index=models.Index(
                condition=models.Q(("status", "queued")), fields=["queued_at"], name="jobs_oldest"
            ),
        ),
        migrations.AddIndex(
            model_name="containerjob",
            index=models.Index(
                condition=models.Q(("status", "queued")),
                fields=["created_by", "queued_at"],
                name="jobs_oldest_of_owner",
            ),
        ),
        migrations.RunPython(guarding.install_in_migration, guarding.remove_in_migration),
    ]
