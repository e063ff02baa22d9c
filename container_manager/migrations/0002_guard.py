"""Installs the triggers and functions that are compiled from the tables of states."""

from django.db import migrations

from container_manager import guarding


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0001_initial")]

    operations = [
        migrations.RunPython(guarding.install_in_migration, guarding.remove_in_migration),
    ]
