"""Wires the guard, the checks and the settings into Django."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks as django_checks
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate, pre_migrate


class ContainerManagerConfig(AppConfig):
    name = "container_manager"
    verbose_name = "Container Manager"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from container_manager import checks, crashes, guarding, outbox
        from container_manager.events import feed

        django_checks.register(checks.settings_are_valid)
        django_checks.register(checks.deployment_is_safe, deploy=True)
        django_checks.register(checks.guard_is_installed, django_checks.Tags.database)
        pre_migrate.connect(guarding.before_migrate, sender=self)
        post_migrate.connect(guarding.after_migrate)
        setting_changed.connect(_reload_settings)
        feed.use(outbox.FeedSource())
        crashes.arm_as_told()


def _reload_settings(*, setting: str, **_: Any) -> None:
    from container_manager import conf

    if setting in ("CONTAINER_MANAGER", "DEBUG"):
        conf.settings.reload()
