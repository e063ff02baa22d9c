"""The pages of jobs in one state are found by the index alone."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0005_counts")]

    operations = [
        migrations.RemoveIndex(model_name="containerjob", name="jobs_by_status"),
        migrations.AddIndex(
            model_name="containerjob",
            index=models.Index(fields=["status", "-created_at", "-id"], name="jobs_by_status"),
        ),
    ]
