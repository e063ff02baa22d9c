"""The project's settings, read from the environment; every default runs on a laptop."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environ
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

from container_manager import __version__
from container_manager.journal import FORMATS

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set: export SECRET_KEY=<a long random text>,"
            " or DEBUG=on for development on this machine."
        )
    SECRET_KEY = "for-development-on-this-machine-only"  # noqa: S105

ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

# The look of the admin; without it Django's own is used.
LOOK = ["unfold"] if env.bool("ADMIN_UNFOLD", default=find_spec("unfold") is not None) else []

INSTALLED_APPS = [
    *LOOK,
    "container_manager",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "knox",
    "rest_framework",
]

MIDDLEWARE = [
    "container_manager.api.request_log.RequestLog",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "config.middleware.StaticFiles",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.middleware.DatabaseAway",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

# Database

SQLITE_OPTIONS = {
    "timeout": 60,
    # A deferred transaction that reads and then writes fails at once with "database is locked".
    "transaction_mode": "IMMEDIATE",
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=60000;"
        # What a long reader made of the log is given back to the disk afterwards.
        "PRAGMA journal_size_limit=67108864;"
    ),
}

POSTGRES_OPTIONS = {
    # A server that is gone without a word is noticed within a minute, and a beat that it does not
    # take is sent again well within a lease.
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 8_000,
}

POOL_OPTIONS = {
    "min_size": env.int("DATABASE_POOL_MIN", default=5),
    "max_size": env.int("DATABASE_POOL_MAX", default=25),
    "max_idle": env.float("DATABASE_POOL_MAX_IDLE", default=5 * 60),
    "max_lifetime": env.float("DATABASE_POOL_MAX_LIFETIME", default=30 * 60),
    # A request that cannot have a connection is told so before its client gives up.
    "timeout": env.float("DATABASE_POOL_TIMEOUT", default=5),
    # For so long the pool tries by itself, each time twice as late; afterwards whoever needs a
    # connection has it try at once. Else it stays away half as long again as the server was.
    "reconnect_timeout": 2,
}


def database() -> dict[str, Any]:
    """The default database: `DATABASE_URL`, else an SQLite file in the project."""
    config: dict[str, Any] = env.db_url(
        "DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
    )
    options = config.setdefault("OPTIONS", {})
    if "sqlite" in config["ENGINE"]:
        options.update(SQLITE_OPTIONS)
        return config
    config.update(CONN_MAX_AGE=0, CONN_HEALTH_CHECKS=True)
    config["OPTIONS"] = options = {**POSTGRES_OPTIONS, **options}
    if env.bool("DATABASE_POOL", default=True):
        options["pool"] = POOL_OPTIONS
    if "host" in options:
        config["HOST"] = options.pop("host")
    return config


DATABASES = {"default": database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Security: what `manage.py check --deploy` asks for, off only while DEBUG is on.

SECURE = env.bool("SECURE", default=not DEBUG)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SECURE_SSL_REDIRECT = env.bool("SECURE_SSL_REDIRECT", default=SECURE)
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=31_536_000 if SECURE else 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE
SECURE_REFERRER_POLICY = "same-origin"
# A probe comes from beside, not through the proxy.
SECURE_REDIRECT_EXEMPT = [r"^(health(/live|/ready)?|metrics)/?$"]
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = env.int("DATA_UPLOAD_MAX_MEMORY_SIZE", default=2 * 1024 * 1024)
# The header by which a proxy in front says that it was reached by HTTPS: only where there is one.
if header := env.str("SECURE_PROXY_SSL_HEADER", default=""):
    SECURE_PROXY_SSL_HEADER = (f"HTTP_{header.upper().replace('-', '_')}", "https")
SESSION_COOKIE_AGE = env.int("SESSION_COOKIE_AGE", default=12 * 3600)
LOGIN_URL, LOGIN_REDIRECT_URL = "admin:login", "admin:index"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# What a page may load and run: only what this site serves, and no script written into a page.
# unfold's pages are built with Alpine, which makes functions of attributes (`unsafe-eval`) and sets
# styles of single elements; Django's own admin needs neither (ADMIN_UNFOLD=off).

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, UNSAFE_EVAL] if LOOK else [SELF],
        "style-src": [SELF],
        "style-src-attr": [UNSAFE_INLINE] if LOOK else [NONE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

# Static files: under DEBUG straight from the apps, else what `manage.py collectstatic` gathered.

STATIC_URL = "static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", default=str(BASE_DIR / "staticfiles")))
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = DEBUG
WHITENOISE_ALLOW_ALL_ORIGINS = False
FOUND, COLLECTED = (
    "django.contrib.staticfiles.storage.StaticFilesStorage",
    "whitenoise.storage.CompressedManifestStaticFilesStorage",
)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": FOUND if DEBUG else COLLECTED},
}

# The admin in unfold's look


def _pages(title: str, permission: str, *items: tuple[str, str, str]) -> dict[str, Any]:
    """A group of the sidebar: title, icon and address of each page."""
    return {
        "title": title,
        "separator": True,
        "items": [
            {
                "title": name,
                "icon": icon,
                "link": reverse_lazy(f"admin:{page}"),
                "permission": permission,
            }
            for name, icon, page in items
        ],
    }


UNFOLD = {
    "SITE_TITLE": "Container Manager",
    "SITE_HEADER": "Container Manager",
    "SITE_ICON": lambda _request: static("container_manager/favicon.svg"),
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda _request: static("container_manager/favicon.svg"),
        }
    ],
    "COLORS": lambda _request: {},  # in unfold.css: no style is written into a page
    "STYLES": [lambda _request: static("container_manager/unfold.css")],
    "SCRIPTS": [lambda _request: static("container_manager/unfold.js")],
    "SIDEBAR": {
        "navigation": [
            _pages(
                "Jobs",
                "container_manager.admin.base.may_see",
                ("Dashboard", "dashboard", "index"),
                ("Jobs", "view_list", "container_manager_containerjob_changelist"),
                ("Queues", "low_priority", "container_manager_queue_changelist"),
                ("Workers", "memory", "container_manager_worker_changelist"),
            ),
            _pages(
                "Workflows",
                "container_manager.admin.base.may_see",
                ("DAGs", "account_tree", "container_manager_dag_changelist"),
                ("Runs", "play_circle", "container_manager_dagrun_changelist"),
                ("Tasks", "checklist", "container_manager_taskinstance_changelist"),
            ),
            _pages(
                "Events",
                "container_manager.admin.base.may_see",
                ("Publishers", "send", "container_manager_publisherstate_changelist"),
            ),
            _pages(
                "People",
                "container_manager.admin.base.may_see_people",
                ("Users", "person", "auth_user_changelist"),
                ("Groups", "group", "auth_group_changelist"),
            ),
        ]
    },
}

LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOG_FORMAT = env.str("LOG_FORMAT", default="text")
if LOG_FORMAT not in FORMATS:
    raise ImproperlyConfigured(f"LOG_FORMAT is {LOG_FORMAT!r}: it must be {' or '.join(FORMATS)}.")
ACCESS_LOG = env.bool("ACCESS_LOG", default=LOG_FORMAT == "json")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": FORMATS[LOG_FORMAT]}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "container_manager": {"handlers": ["console"], "level": LOG_LEVEL, "propagate": False},
        # One line for each request, whatever LOG_LEVEL says.
        "container_manager.access": {"level": "INFO" if ACCESS_LOG else "CRITICAL"},
        "django": {"handlers": ["console"], "level": "WARNING", "propagate": False},
        "uvicorn": {"handlers": ["console"], "level": "INFO", "propagate": False},
        "uvicorn.access": {"level": "CRITICAL" if ACCESS_LOG else "INFO", "propagate": True},
        # A client's mistake is in its answer; here stands what went wrong on our side.
        "django.request": {"level": "ERROR"},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
    },
}

# The REST API: its views name their own authentication, permissions, parsers and schema.

SPECTACULAR_SETTINGS = {
    "TITLE": "Container Manager",
    "DESCRIPTION": "Runs container jobs. Every refusal is a problem document (RFC 9457).",
    "VERSION": __version__,
    "OAS_VERSION": "3.1.1",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "POSTPROCESSING_HOOKS": ["container_manager.api.operations.finish_document"],
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True},
}

# Tokens of the API: only their hash is kept, and they end by themselves.

REST_KNOX = {
    "TOKEN_TTL": timedelta(hours=env.float("TOKEN_HOURS", default=12)),
    "SECURE_HASH_ALGORITHM": "hashlib.sha512",
    "AUTH_HEADER_PREFIX": "Token",
}

# Redis is told what happens, and is never on the path of correctness; empty: there is none.

REDIS_URL = env.str("REDIS_URL", default="")

# The app: each of its keys can come from the environment as CONTAINER_MANAGER_<KEY>.

_PREFIX = "CONTAINER_MANAGER_"
CONTAINER_MANAGER: dict[str, Any] = {
    name.removeprefix(_PREFIX): value
    for name, value in os.environ.items()
    if name.startswith(_PREFIX)
}
if REDIS_URL:
    TO_REDIS = {"class": "container_manager.events.redis.RedisPublisher"}
    CONTAINER_MANAGER.setdefault(
        "PUBLISHERS", {"redis": {**TO_REDIS, "options": {"url": REDIS_URL}}}
    )
