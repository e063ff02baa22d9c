"""A plain DRF viewset over our rows: ModelSerializer, ModelViewSet, LimitOffsetPagination.

Also the addresses of the site that the two are measured on, and its settings' ROOT_URLCONF.
"""

from __future__ import annotations

from django.urls import include, path
from knox.auth import TokenAuthentication
from rest_framework.pagination import LimitOffsetPagination
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.routers import SimpleRouter
from rest_framework.serializers import ModelSerializer
from rest_framework.viewsets import ModelViewSet

from container_manager.api.job_fields import LIST_COLUMNS
from container_manager.models import ContainerJob


class PlainSerializer(ModelSerializer):
    """The same columns that our list shows."""

    class Meta:
        model = ContainerJob
        fields = LIST_COLUMNS


class PlainPagination(LimitOffsetPagination):
    default_limit = 20
    max_limit = 100


class PlainViewSet(ModelViewSet):
    """As every tutorial writes it, with the same login as ours."""

    queryset = ContainerJob.objects.all()
    serializer_class = PlainSerializer
    pagination_class = PlainPagination
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]
    renderer_classes = [JSONRenderer]
    filterset_fields = ["status"]

    def get_queryset(self):
        jobs = super().get_queryset()
        status = self.request.query_params.get("status")
        return jobs.filter(status=status) if status else jobs


router = SimpleRouter()
router.register("plain/jobs", PlainViewSet)

urlpatterns = [
    path("api/v1/", include("container_manager.api.urls")),
    path("", include(router.urls)),
]
