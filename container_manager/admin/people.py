"""People and groups, which Django registers itself, in the look of the other pages."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group

from container_manager.admin.compat import dress

dress(get_user_model(), UserAdmin)
dress(Group, GroupAdmin)
