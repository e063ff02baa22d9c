"""A reason of its own for a job that prints more than its executor may keep; no column changes."""

from django.db import migrations, models

REASONS = (
    *("exit_code", "signal", "timeout", "start_timeout", "queue_timeout", "oom"),
    *("image_not_found", "command_not_found", "not_executable", "not_permitted"),
    *("launch_error", "executor_unavailable", "worker_lost", "worker_stopped"),
    *("disk_full", "output_limit", "poison", "unproven", "cancelled", "killed"),
)
CHOICES = [(word, word.replace("_", " ").capitalize()) for word in REASONS]


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0007_requesters")]

    operations = [
        migrations.AlterField(
            model_name=model,
            name="reason",
            field=models.CharField(blank=True, choices=CHOICES, max_length=64),
        )
        for model in ("containerjob", "jobattempt")
    ]
