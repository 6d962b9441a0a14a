"""Tests of the firmware that the planner writes."""
