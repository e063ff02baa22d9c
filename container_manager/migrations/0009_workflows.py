"""DAGs, their runs and the tasks of those; tags are found by an index of PostgreSQL's own kind."""

import django.db.models.deletion
import django.utils.timezone
import django_fsm
from django.conf import settings
from django.db import migrations, models

import container_manager.ids
import container_manager.models.fields
import container_manager.models.validators
import container_manager.states


def set_storage(_apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("CREATE INDEX dags_tags ON dags USING gin (tags jsonb_path_ops)")
        schema_editor.execute("ALTER TABLE task_instances SET (fillfactor = 80)")


class Migration(migrations.Migration):
    dependencies = [
        ("container_manager", "0008_output_limit"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Dag",
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
                ("name", models.CharField(max_length=200, unique=True)),
                ("description", models.TextField(blank=True)),
                (
                    "tags",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        validators=[container_manager.models.validators.labels],
                    ),
                ),
                ("is_paused", models.BooleanField(default=False)),
                (
                    "schedule",
                    models.CharField(
                        blank=True, help_text="Cron; empty: by hand only.", max_length=200
                    ),
                ),
                ("timezone", models.CharField(default="UTC", max_length=64)),
                ("start_date", models.DateTimeField(blank=True, null=True)),
                ("end_date", models.DateTimeField(blank=True, null=True)),
                (
                    "missed_runs",
                    models.CharField(
                        choices=[("latest", "Latest"), ("all", "All"), ("none", "None")],
                        default=container_manager.states.MissedRuns["LATEST"],
                        max_length=10,
                    ),
                ),
                (
                    "max_active_runs",
                    models.PositiveIntegerField(
                        default=16,
                        validators=[container_manager.models.validators.InRange(1, 1000)],
                    ),
                ),
                (
                    "spec",
                    container_manager.models.fields.OrderedJSONField(
                        help_text="The document it was made of, normalized."
                    ),
                ),
                (
                    "slots_until",
                    models.DateTimeField(
                        default=django.utils.timezone.now,
                        editable=False,
                        help_text="All slots up to this instant are dealt with.",
                    ),
                ),
                ("next_slot_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
            ],
            options={
                "verbose_name": "DAG",
                "verbose_name_plural": "DAGs",
                "db_table": "dags",
                "ordering": ("-created_at", "-id"),
            },
        ),
        migrations.CreateModel(
            name="DagRun",
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
                    "version",
                    models.PositiveIntegerField(
                        default=1, editable=False, help_text="Counts the moves: 1 at creation."
                    ),
                ),
                (
                    "transition_info",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        editable=False,
                        help_text="Who made the latest move and why: version, actor, reason, metadata.",
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "state",
                    django_fsm.FSMField(
                        choices=[
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("success", "Success"),
                            ("failed", "Failed"),
                            ("retrying", "Retrying"),
                            ("skipped", "Skipped"),
                            ("upstream_failed", "Upstream failed"),
                        ],
                        default=container_manager.states.WorkflowState["QUEUED"],
                        max_length=20,
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=64)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                ("duration_ms", models.BigIntegerField(blank=True, null=True)),
                ("run_id", models.CharField(max_length=250)),
                (
                    "execution_date",
                    models.DateTimeField(
                        help_text="The instant that its slot stands for, or of its trigger."
                    ),
                ),
                (
                    "run_type",
                    models.CharField(
                        choices=[
                            ("scheduled", "Scheduled"),
                            ("manual", "Manual"),
                            ("backfill", "Backfill"),
                        ],
                        default=container_manager.states.RunType["MANUAL"],
                        max_length=20,
                    ),
                ),
                ("params", models.JSONField(blank=True, default=dict)),
                (
                    "spec",
                    container_manager.models.fields.OrderedJSONField(
                        help_text="The DAG's document as it was when the run was made."
                    ),
                ),
                ("cancel_requested_at", models.DateTimeField(blank=True, null=True)),
                ("cancel_requested_by", models.CharField(blank=True, default="", max_length=255)),
            ],
            options={
                "verbose_name": "DAG run",
                "db_table": "dag_runs",
                "ordering": ("-execution_date", "-id"),
            },
        ),
        migrations.CreateModel(
            name="TaskInstance",
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
                    "version",
                    models.PositiveIntegerField(
                        default=1, editable=False, help_text="Counts the moves: 1 at creation."
                    ),
                ),
                (
                    "transition_info",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        editable=False,
                        help_text="Who made the latest move and why: version, actor, reason, metadata.",
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "state",
                    django_fsm.FSMField(
                        choices=[
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("success", "Success"),
                            ("failed", "Failed"),
                            ("retrying", "Retrying"),
                            ("skipped", "Skipped"),
                            ("upstream_failed", "Upstream failed"),
                        ],
                        default=container_manager.states.WorkflowState["QUEUED"],
                        max_length=20,
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=64)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                ("duration_ms", models.BigIntegerField(blank=True, null=True)),
                ("task_id", models.CharField(help_text="`name`, or `name[3]`.", max_length=210)),
                (
                    "name",
                    models.CharField(help_text="The task's name in the document.", max_length=200),
                ),
                (
                    "map_index",
                    models.IntegerField(blank=True, help_text="Its place in its array.", null=True),
                ),
                ("position", models.IntegerField(help_text="Its place in the document.")),
                (
                    "queued_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When its job was queued; until then there is none.",
                        null=True,
                    ),
                ),
                (
                    "try_number",
                    models.PositiveIntegerField(default=0, help_text="The attempt of its job."),
                ),
                ("max_tries", models.PositiveIntegerField(default=1)),
                ("exit_code", models.IntegerField(blank=True, null=True)),
                ("error", models.TextField(blank=True)),
            ],
            options={
                "db_table": "task_instances",
                "ordering": ("-created_at", "-id"),
            },
        ),
        migrations.AddIndex(
            model_name="containerjob",
            index=models.Index(
                condition=models.Q(("managed_by", ""), _negated=True),
                fields=["managed_by"],
                name="jobs_managed",
            ),
        ),
        migrations.AddField(
            model_name="dag",
            name="created_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="dags",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="dagrun",
            name="dag",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="runs",
                to="container_manager.dag",
            ),
        ),
        migrations.AddField(
            model_name="taskinstance",
            name="dag_run",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="tasks",
                to="container_manager.dagrun",
            ),
        ),
        migrations.AddField(
            model_name="taskinstance",
            name="job",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                default=container_manager.ids.uuid7,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to="container_manager.containerjob",
            ),
        ),
        migrations.AddIndex(
            model_name="dag",
            index=models.Index(fields=["-created_at", "-id"], name="dags_newest"),
        ),
        migrations.AddIndex(
            model_name="dag",
            index=models.Index(
                condition=models.Q(("is_paused", False)),
                fields=["next_slot_at"],
                name="dags_next_slot",
            ),
        ),
        migrations.AddIndex(
            model_name="dagrun",
            index=models.Index(fields=["-execution_date", "-id"], name="dag_runs_newest"),
        ),
        migrations.AddIndex(
            model_name="dagrun",
            index=models.Index(fields=["state", "-execution_date"], name="dag_runs_by_state"),
        ),
        migrations.AddIndex(
            model_name="dagrun",
            index=models.Index(fields=["-created_at"], name="dag_runs_created"),
        ),
        migrations.AddIndex(
            model_name="dagrun",
            index=models.Index(
                condition=models.Q(("state__in", ["queued", "running", "retrying"])),
                fields=["dag", "created_at"],
                name="dag_runs_unfinished",
            ),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "state__in",
                        [
                            "queued",
                            "running",
                            "success",
                            "failed",
                            "retrying",
                            "skipped",
                            "upstream_failed",
                        ],
                    )
                ),
                name="dag_runs_state_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(("state__in", ["queued"]), _negated=True),
                        ("started_at__isnull", True),
                        _connector="OR",
                    ),
                    models.Q(
                        models.Q(("state__in", ["retrying", "running", "success"]), _negated=True),
                        models.Q(("started_at__isnull", True), _negated=True),
                        _connector="OR",
                    ),
                ),
                name="dag_runs_started_at_matches_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(("state__in", ["queued", "retrying", "running"]), _negated=True),
                        ("ended_at__isnull", True),
                        _connector="OR",
                    ),
                    models.Q(
                        models.Q(
                            ("state__in", ["failed", "skipped", "success", "upstream_failed"]),
                            _negated=True,
                        ),
                        models.Q(("ended_at__isnull", True), _negated=True),
                        _connector="OR",
                    ),
                ),
                name="dag_runs_ended_at_matches_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("duration_ms__isnull", True), ("duration_ms__gte", 0), _connector="OR"
                ),
                name="dag_runs_duration_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.UniqueConstraint(fields=("dag", "run_id"), name="one_run_id_per_dag"),
        ),
        migrations.AddConstraint(
            model_name="dagrun",
            constraint=models.UniqueConstraint(
                fields=("dag", "execution_date"), name="one_run_per_slot"
            ),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(fields=["dag_run", "name", "state"], name="tasks_by_name"),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(fields=["dag_run", "position"], name="tasks_in_order"),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(
                condition=models.Q(("state__in", ["queued", "running", "retrying"])),
                fields=["dag_run"],
                name="tasks_unfinished",
            ),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(
                condition=models.Q(
                    ("queued_at__isnull", False), ("state__in", ["queued", "running", "retrying"])
                ),
                fields=["job"],
                name="tasks_following",
            ),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(fields=["state", "-created_at"], name="tasks_by_state"),
        ),
        migrations.AddIndex(
            model_name="taskinstance",
            index=models.Index(fields=["-created_at", "-id"], name="tasks_newest"),
        ),
        migrations.AddConstraint(
            model_name="taskinstance",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "state__in",
                        [
                            "queued",
                            "running",
                            "success",
                            "failed",
                            "retrying",
                            "skipped",
                            "upstream_failed",
                        ],
                    )
                ),
                name="task_instances_state_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="taskinstance",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(("state__in", ["queued"]), _negated=True),
                        ("started_at__isnull", True),
                        _connector="OR",
                    ),
                    models.Q(
                        models.Q(("state__in", ["retrying", "running", "success"]), _negated=True),
                        models.Q(("started_at__isnull", True), _negated=True),
                        _connector="OR",
                    ),
                ),
                name="task_instances_started_at_matches_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="taskinstance",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(("state__in", ["queued", "retrying", "running"]), _negated=True),
                        ("ended_at__isnull", True),
                        _connector="OR",
                    ),
                    models.Q(
                        models.Q(
                            ("state__in", ["failed", "skipped", "success", "upstream_failed"]),
                            _negated=True,
                        ),
                        models.Q(("ended_at__isnull", True), _negated=True),
                        _connector="OR",
                    ),
                ),
                name="task_instances_ended_at_matches_state",
            ),
        ),
        migrations.AddConstraint(
            model_name="taskinstance",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("duration_ms__isnull", True), ("duration_ms__gte", 0), _connector="OR"
                ),
                name="task_instances_duration_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="taskinstance",
            constraint=models.UniqueConstraint(
                fields=("dag_run", "task_id"), name="one_task_per_run"
            ),
        ),
        migrations.RunPython(set_storage, migrations.RunPython.noop),
    ]
