"""The addresses of the REST API; the trailing slash is optional everywhere."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, re_path
from rest_framework.routers import SimpleRouter

from container_manager.api import auth, document, logs, machinery, publishers
from container_manager.api.base import BaseView, NothingHere
from container_manager.api.dag_runs import DagRunViewSet
from container_manager.api.dags import DagViewSet
from container_manager.api.jobs import JobViewSet
from container_manager.api.task_instances import TaskInstanceViewSet
from container_manager.models import validators

app_name = "container_manager_api"


class Router(SimpleRouter):
    """DRF's router; an address leads to the same place with and without its last slash."""

    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"


router = Router()
router.register("jobs", JobViewSet, basename="job")
router.register("dags", DagViewSet, basename="dag")
router.register("dag-runs", DagRunViewSet, basename="dag-run")
router.register("task-instances", TaskInstanceViewSet, basename="task-instance")

JOB = r"jobs/(?P<pk>[^/]+)"


def at(route: str, view: type[BaseView], name: str) -> URLPattern:
    return re_path(rf"^{route}/?$", view.as_view(), name=name)


urlpatterns: list[URLPattern | URLResolver] = [
    at("auth/login", auth.LoginView, "login"),
    at("auth/logout", auth.LogoutView, "logout"),
    at("auth/logout-all", auth.LogoutAllView, "logout-all"),
    at("auth/me", auth.MeView, "me"),
    at("stats", machinery.StatsView, "stats"),
    at("jobs/stats", machinery.StatsView, "job-stats"),
    at(rf"{JOB}/logs", logs.LogsView, "job-logs"),
    at(rf"{JOB}/logs/raw", logs.RawLogView, "job-raw-log"),
    at("queues", machinery.QueuesView, "queues"),
    at(rf"queues/(?P<name>{validators.QUEUE.pattern})", machinery.QueueView, "queue"),
    at("executors", machinery.ExecutorsView, "executors"),
    at("workers", machinery.WorkersView, "workers"),
    at(r"workers/(?P<pk>[^/]+)", machinery.WorkerView, "worker"),
    at("publishers", publishers.PublishersView, "publishers"),
    at(publishers.ONE, publishers.PublisherView, "publisher"),
    at(rf"{publishers.ONE}/dead-letters", publishers.LettersView, "dead-letters"),
    at(rf"{publishers.ONE}/dead-letters/redeliver", publishers.RedeliverView, "dead-letters-again"),
    at(rf"{publishers.ONE}/dead-letters/discard", publishers.DiscardView, "dead-letters-gone"),
    *router.urls,
    at("schema", document.DocumentView, "schema"),
    at("docs", document.DocsView, "docs"),
    # The last one: what no address above matches is a 404 of ours, as a problem document.
    re_path(r"", NothingHere.as_view(), name="nothing"),
]
