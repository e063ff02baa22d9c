"""PostgreSQL: room for HOT updates, and a vacuum that keeps up with a queue."""

from django.db import migrations

STORAGE = {
    "container_jobs": "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,"
    " autovacuum_analyze_scale_factor = 0.02",
    "job_attempts": "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,"
    " autovacuum_analyze_scale_factor = 0.02",
    "workers": "fillfactor = 50",
}


def set_storage(_apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table, options in STORAGE.items():
            schema_editor.execute(f"ALTER TABLE {table} SET ({options})")


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0002_guard")]

    operations = [migrations.RunPython(set_storage, migrations.RunPython.noop)]
