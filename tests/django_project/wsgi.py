"""For gunicorn --preload: the cache is used before the workers are forked, so they inherit an open connection."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_project.settings")

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
asgi = get_asgi_application()

from django.core.cache import cache  # noqa: E402

cache.set("master", [os.getpid()])
assert cache.get("master") == [os.getpid()]
