from django.urls import path

from detection.feedback_views import FeedbackViewSet
from detection.views import DetectViewSet, ScoreViewSet

urlpatterns = [
    path("v1/detect", DetectViewSet.as_view({"post": "create"}), name="detection-detect"),
    path("v1/detect/score", ScoreViewSet.as_view({"post": "create"}), name="detection-score"),
    path("v1/feedback", FeedbackViewSet.as_view({"post": "create"}), name="detection-feedback"),
]
