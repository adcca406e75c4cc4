"""``INSTALLED_APPS += ["mqkv.django"]`` is possible, and not needed: the checks of caches run without."""

from __future__ import annotations

from django.apps import AppConfig


class MqkvConfig(AppConfig):  # type: ignore[misc]
    name = "mqkv.django"
    label = "mqkv"
    verbose_name = "mqkv"
