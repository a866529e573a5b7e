from django.urls import path

from detection.views import DetectViewSet, ScoreViewSet

urlpatterns = [
    path("v1/detect", DetectViewSet.as_view({"post": "create"}), name="detection-detect"),
    path("v1/detect/score", ScoreViewSet.as_view({"post": "create"}), name="detection-score"),
]
