"""A small real project: sessions, messages, cached views and fragments. Tests put the cache that they test into CACHES."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent
SECRET_KEY = "of-the-small-project"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_project.urls"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "mqkv.django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "OPTIONS": {"context_processors": ["django.contrib.messages.context_processors.messages"]},
    }
]
# Servers that tests start are told by the environment.
CACHES = {
    "default": {
        "BACKEND": "mqkv.django.StreamCache",
        "LOCATION": os.environ.get("MQKV_PROJECT_URL", "memory://"),
        "OPTIONS": {"prefix": os.environ.get("MQKV_PROJECT_PREFIX", "project"), "read_timeout": 5},
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
