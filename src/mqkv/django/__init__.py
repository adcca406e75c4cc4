"""Django's cache on an mqkv store::

    CACHES = {
        "default": {
            "BACKEND": "mqkv.django.StreamCache",
            "LOCATION": "amqp://user:password@broker.example/%2F",
        }
    }

All options: ``python -m pydoc mqkv.django.options``. ``manage.py check`` tells what is wrong with an entry.
"""

from mqkv.django import checks as checks  # registered by being imported, as Django's own are
from mqkv.django.backend import StreamCache
from mqkv.django.errors import InvalidCacheOption
from mqkv.django.health import Health, get_store, health
from mqkv.django.lock import CacheLock
from mqkv.django.stores import close_stores
from mqkv.django.url import cache_url

__all__ = ["CacheLock", "Health", "InvalidCacheOption", "StreamCache", "cache_url", "close_stores", "get_store", "health"]
