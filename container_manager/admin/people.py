"""People, groups and their tokens, which others register, in the look of the other pages."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest

from container_manager.admin.compat import ModelAdmin, dress

dress(get_user_model(), UserAdmin)
dress(Group, GroupAdmin)


class TokenAdmin(ModelAdmin):
    """Tokens of the REST API: to look at and to revoke; one made here would be of no use."""

    fields = list_display = ("user", "created", "expiry")
    list_select_related = ("user",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


if apps.is_installed("knox"):
    import knox.admin  # it registers its own page, which is replaced here

    admin.site.unregister(knox.models.AuthToken)
    admin.site.register(knox.models.AuthToken, TokenAdmin)
