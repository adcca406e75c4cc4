from __future__ import annotations

from django.urls import path
from django.views.decorators.cache import cache_page

from django_project import views

urlpatterns = [
    path("visits/", views.visits),
    path("login/", views.log_in),
    path("logout/", views.log_out),
    path("say/", views.say),
    path("said/", views.said),
    path("plain/", views.plain),
    path("page/", cache_page(60)(views.plain)),
    path("page/async/", cache_page(60)(views.plain_async)),
    path("large/", cache_page(60)(views.large)),
    path("fragment/", views.fragment),
    path("set/", views.set_value),
    path("get/", views.get_value),
    path("aget/", views.get_value_async),
    path("pid/", views.pid),
]
