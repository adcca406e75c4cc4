from __future__ import annotations

import itertools
import os

from django.contrib import messages
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

calls = itertools.count(1)


def visits(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


def log_in(request: HttpRequest) -> HttpResponse:
    login(request, User.objects.get(username="ada"), backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")


def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


def say(request: HttpRequest) -> HttpResponse:
    messages.success(request, request.GET["text"])
    return HttpResponse("said")


def said(request: HttpRequest) -> HttpResponse:
    return HttpResponse(", ".join(str(message) for message in messages.get_messages(request)))


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"made {next(calls)} times")


async def plain_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"made {next(calls)} times")


def fragment(request: HttpRequest) -> HttpResponse:
    return render(request, "fragment.html", {"made": next(calls), "name": request.GET.get("name", "")})


def set_value(request: HttpRequest) -> HttpResponse:
    cache.set(request.GET["key"], request.GET["value"], 600)
    return HttpResponse("set")


def get_value(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"pid": os.getpid(), "value": cache.get(request.GET["key"])})


async def get_value_async(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"pid": os.getpid(), "value": await cache.aget(request.GET["key"])})


def pid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


def large(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"x" * 16 * 2**20)
