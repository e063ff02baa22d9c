"""Who asked for a kill or a cancel is kept with the request."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("container_manager", "0006_pages")]

    # A default of the database's own: workers of the version before go on inserting and claiming.
    operations = [
        migrations.AddField(
            model_name="containerjob",
            name=name,
            field=models.CharField(blank=True, db_default="", default="", max_length=255),
        )
        for name in ("kill_requested_by", "cancel_requested_by")
    ]
