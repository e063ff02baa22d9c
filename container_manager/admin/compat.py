"""Which look the admin has: django-unfold's where it is installed, else Django's own.

Everything else of this package is written against Django's own classes and templates; only this
module knows that there is another look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import admin as auth_admin

UNFOLD = apps.is_installed("unfold")

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
elif UNFOLD:
    from unfold.admin import ModelAdmin
else:
    from django.contrib.admin import ModelAdmin

__all__ = ["UNFOLD", "ModelAdmin", "dress"]


def dress(model: Any, plain: type[Any]) -> None:
    """Give a model that Django itself registered, as `plain`, the look of the others."""
    if UNFOLD and type(admin.site._registry.get(model)) is plain:
        admin.site.unregister(model)
        admin.site.register(model, type(plain.__name__, (plain, ModelAdmin), _forms_of(plain)))


def _forms_of(plain: type[Any]) -> dict[str, Any]:
    """People's forms have widgets of their own, which unfold has once more in its look."""
    from unfold import forms

    if plain is not auth_admin.UserAdmin:
        return {}
    return {
        "form": forms.UserChangeForm,
        "add_form": forms.UserCreationForm,
        "change_password_form": forms.AdminPasswordChangeForm,
    }
