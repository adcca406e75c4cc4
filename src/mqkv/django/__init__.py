"""Django's cache on an mqkv store: ``"BACKEND": "mqkv.django.StreamCache"``. See docs/django.md."""

from mqkv.django.backend import StreamCache
from mqkv.django.errors import InvalidCacheOption
from mqkv.django.health import Health, get_store, health
from mqkv.django.stores import close_stores
from mqkv.django.url import cache_url

__all__ = ["Health", "InvalidCacheOption", "StreamCache", "cache_url", "close_stores", "get_store", "health"]
