from django.urls import path

from detection.views import DetectViewSet

urlpatterns = [
    path("v1/detect", DetectViewSet.as_view({"post": "create"}), name="detection-detect"),
]
