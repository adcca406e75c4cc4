"""``INSTALLED_APPS += ["mqkv.django"]``: system checks of the caches. The backend works without."""

from __future__ import annotations

from django.apps import AppConfig


class MqkvConfig(AppConfig):  # type: ignore[misc]
    name = "mqkv.django"
    label = "mqkv"
    verbose_name = "mqkv"

    def ready(self) -> None:
        # Registered by being imported, as Django's own are.
        from mqkv.django import checks  # noqa: F401
